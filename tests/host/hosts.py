"""Where the real ComfyUI is, and how to run it.

The host is COMFYUI_PATH, else comfy-cli's default workspace ~/comfy/ComfyUI, else the ComfyUI around this folder;
its interpreter is COMFYUI_PYTHON, else `.venv` inside it. A second, oldest supported host is COMFYUI_OLD_PATH, else
~/comfy/ComfyUI-v0.3.43 (slow tests only; 0.1.0 was tested on 0.33.0). LORWEB_PACK is the node pack under test, such
as an unpacked archive of `comfy node pack`; without it, this repository:

    LORWEB_PACK=/tmp/pack LORWEB_REQUIRE_HOST=1 python -m pytest tests/host/test_workflows.py tests/host/test_inside.py
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = Path(os.environ.get("LORWEB_PACK", ROOT)).resolve()


@dataclass(frozen=True)
class Host:
    """One ComfyUI folder and the interpreter that runs it."""

    path: Path
    python: Path

    @property
    def version(self):
        """The host's version as numbers, such as (0, 33, 0)."""
        text = (self.path / "comfyui_version.py").read_text()
        return tuple(int(part) for part in text.split('"')[1].split("."))


def find_host():
    """Return the host to test on, or None."""
    enclosing = ROOT.parent.parent if ROOT.parent.name == "custom_nodes" else None
    candidates = [os.environ.get("COMFYUI_PATH"), Path.home() / "comfy" / "ComfyUI", enclosing]
    return _first_host(candidates, os.environ.get("COMFYUI_PYTHON"))


def find_old_host():
    """Return the oldest supported host, or None."""
    return _first_host([os.environ.get("COMFYUI_OLD_PATH"), Path.home() / "comfy" / "ComfyUI-v0.3.43"], None)


def _first_host(candidates, python):
    for candidate in candidates:
        path = Path(candidate) if candidate else None
        if path is None or not (path / "main.py").is_file():
            continue
        inside = path / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        return Host(path, Path(python) if python else inside if inside.exists() else Path(sys.executable))
    return None
