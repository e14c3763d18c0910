"""What all tests share: the hosts, and the closing line about host tests."""

import os
import sys

import pytest

from tests.host.hosts import find_host, find_old_host

#: The trainer asks for Python 3.11, nodes and core for 3.10.
collect_ignore = ["training"] if sys.version_info < (3, 11) else []
REQUIRE_HOST = bool(os.environ.get("LORWEB_REQUIRE_HOST"))


@pytest.fixture(scope="session")
def newest_host():
    """The host under COMFYUI_PATH or in its usual place."""
    return _require(find_host(), "no ComfyUI found: set COMFYUI_PATH, or install it in ~/comfy/ComfyUI")


@pytest.fixture(scope="session")
def oldest_host():
    """The oldest supported host."""
    return _require(find_old_host(), "no old ComfyUI found: set COMFYUI_OLD_PATH")


@pytest.fixture(scope="session", params=["newest", pytest.param("oldest", marks=pytest.mark.slow)])
def host(request):
    """Each supported end of the host's versions; the oldest one with `make test-all` only."""
    return request.getfixturevalue(f"{request.param}_host")


def _require(found, reason):
    if found is None:
        pytest.skip(reason)
    return found


def pytest_collection_modifyitems(items):
    """Everything below tests/host needs a host."""
    for item in items:
        if "/tests/host/" in item.path.as_posix():
            item.add_marker(pytest.mark.host)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """With LORWEB_REQUIRE_HOST=1 a skipped host test is a failure."""
    outcome = yield
    report = outcome.get_result()
    report.is_host_test = item.get_closest_marker("host") is not None
    if REQUIRE_HOST and report.is_host_test and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"LORWEB_REQUIRE_HOST is set and the test was skipped: {report.longrepr}"


def pytest_terminal_summary(terminalreporter):
    """Report how many host tests ran, and why others did not."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    host_reports = [report for report in reports if getattr(report, "is_host_test", False)]
    skipped = [report for report in host_reports if report.skipped]
    run = len({report.nodeid for report in host_reports if report.when == "call" and not report.skipped})
    reasons = sorted({str(report.longrepr[-1]).removeprefix("Skipped: ") for report in skipped})
    why = f" ({'; '.join(reasons)})" if reasons else ""
    terminalreporter.write_line(f"host tests: {run} run, {len(skipped)} skipped{why}")
