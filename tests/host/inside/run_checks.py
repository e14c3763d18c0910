"""Run every `check_*` function of the given file inside a real ComfyUI and print one JSON line of results.

Usage: <host's python> run_checks.py HOST_ROOT PACK_ROOT CHECK_FILE [name …]
A process of its own, because the host's module names (`nodes`, `comfy`, `utils`) clash with a test runner's.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

RESULT_PREFIX = "CHECK RESULTS "


def load_by_path(name, path, **options):
    """Import a file under a fixed name."""
    spec = importlib.util.spec_from_file_location(name, path, **options)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def main():
    """Import host and pack, run the checks under inference_mode as nodes run, print the results."""
    host_root, pack_root, check_file, *names = sys.argv[1:]
    sys.argv = sys.argv[:1]
    sys.path[:] = [host_root, *(entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent)]
    from comfy.cli_args import args

    args.cpu = True
    import torch

    import nodes  # noqa: F401 - the host's own module, so that nobody takes ours for it

    load_by_path("comfyui_lorweb", Path(pack_root) / "__init__.py", submodule_search_locations=[pack_root])
    for helper in ("tiny_flux", "seeded_basis", "refusals"):
        load_by_path(helper, Path(__file__).parent / f"{helper}.py")
    checks = load_by_path("checks", check_file)
    results = {}
    for name in names or [name for name in vars(checks) if name.startswith("check_")]:
        try:
            with torch.inference_mode():
                getattr(checks, name)()
            results[name] = "ok"
        except Exception:
            results[name] = traceback.format_exc()
    print(RESULT_PREFIX + json.dumps(results))


main()
