"""The package that the Comfy registry serves: the tracked files without those of .comfyignore."""

import io
import json
import re
import subprocess
import zipfile

import pytest

from tests.host.hosts import ROOT

MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def names():
    """The files of the package, as `comfy node pack` takes them."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def list_files(*options):
        command = ["git", "ls-files", "-z", *options]
        return set(
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
        )

    return sorted(list_files() - list_files("--cached", "--ignored", "--exclude-from=.comfyignore"))


def test_the_package_has_everything_that_the_nodes_need_and_no_demo(names):
    folders = ("nodes", "lorweb_core", "web", "locales", "workflows")
    for folder in folders:
        assert any(name.startswith(f"{folder}/") for name in names)
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "training/demo/", ".github/"))]
    tracked = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert set(tracked.splitlines()) <= set(names)


def test_the_package_is_small(names):
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(ROOT / name, name)
    assert len(file.getvalue()) < MAX_BYTES


def test_requirements_are_those_of_the_project():
    (listed,) = re.findall(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert (ROOT / "requirements.txt").read_text().split() == json.loads(listed)
