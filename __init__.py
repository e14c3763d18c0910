"""LoRWeB visual analogies for FLUX.1-Kontext: a ComfyUI node pack.

The host imports this folder as a package and reads the names below. Nothing is loaded, downloaded or printed here.
"""

if __package__:  # empty when a test runner collects this file alone
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
