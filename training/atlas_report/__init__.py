"""An atlas of a basis: many analogies routed through it, and what they say about its adapters.

`analogies` chooses and embeds, `adapter_use` counts who works for whom, `analogy_space` measures distances and draws
the map's points, `drawings` makes pictures of them, `page` lays them out. `training.atlas` is the command.
"""
