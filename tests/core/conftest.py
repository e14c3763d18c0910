"""Fixtures of the command line tests."""

import pytest

from lorweb_core.command_line import main


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout lines, stderr lines."""

    def call(*words):
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call
