"""Checks that run inside the host's own process, one process a file, each check reported as a test of its own."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.host.hosts import PACK

INSIDE = Path(__file__).parent / "inside"
RESULT_PREFIX = "CHECK RESULTS "
CHECKS = [
    (path.name, name)
    for path in sorted(INSIDE.glob("check_*.py"))
    for name in re.findall(r"^def (check_\w+)\(", path.read_text(), re.MULTILINE)
]


def run_checks(host, file_name):
    """Run one check file inside a host; return name → "ok" or a traceback."""
    command = [host.python, INSIDE / "run_checks.py", host.path, PACK, INSIDE / file_name]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT_PREFIX)]
    assert lines, f"the host's process ended without results:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(lines[-1].removeprefix(RESULT_PREFIX))


@pytest.fixture(scope="session")
def results(host):
    """Check file → its results; each file runs once per host."""
    known = {}

    def get(file_name):
        if file_name not in known:
            known[file_name] = run_checks(host, file_name)
        return known[file_name]

    return get


@pytest.mark.parametrize(("file_name", "check"), CHECKS, ids=[f"{file[6:-3]}-{name[6:]}" for file, name in CHECKS])
def test_inside_the_host(results, file_name, check):
    outcome = results(file_name)[check]
    assert outcome == "ok", outcome
