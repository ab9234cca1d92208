"""What every test may count on: tools and rights, hypothesis' settings, and folders with short names.

A test that needs a program says `@pytest.mark.needs("tshark")`, one that needs TAP devices and network
namespaces `@pytest.mark.root`. Where something is missing the test is skipped with the reason; where
LOCKSTEP_REQUIRE=all is set, as in CI, it fails.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# `bench` and `tests` are not installed. Last, so that what is tested is what was installed and not this folder.
sys.path.append(str(Path(__file__).parents[1]))

# HYPOTHESIS_EXAMPLES: how many of a property are tried where its test names no number. CI tries the same each time.
settings.register_profile(
    "lockstep",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=os.environ.get("LOCKSTEP_REQUIRE") == "all",
)
settings.load_profile("lockstep")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): programs that the test drives")


@functools.cache
def missing_rights() -> str | None:
    """Why TAP devices and network namespaces can't be made here."""
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing"
    made = subprocess.run(
        ["unshare", "--net", "ip", "tuntap", "add", "dev", "tap0", "mode", "tap", "vnet_hdr"],
        capture_output=True,
        text=True,
    )
    return None if made.returncode == 0 else f"TAP devices and namespaces are not permitted: {made.stderr.strip()}"


def require(*programs: str, rights: bool = False) -> None:
    """Skip the test, or fail it under LOCKSTEP_REQUIRE=all, unless all of this is there."""
    needed = [*programs, "unshare", "ip"] if rights else programs
    absent = [program for program in needed if not shutil.which(program)]
    reason = f"{', '.join(absent)} is missing" if absent else missing_rights() if rights else None
    if reason and os.environ.get("LOCKSTEP_REQUIRE") == "all":
        pytest.fail(f"{reason}, and LOCKSTEP_REQUIRE=all")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def requires() -> Callable[..., None]:
    """`require`, for tests and fixtures that only know while they run what they need."""
    return require


def pytest_runtest_setup(item: pytest.Item) -> None:
    programs = [program for mark in item.iter_markers("needs") for program in mark.args]
    rights = item.get_closest_marker("root") is not None
    if programs or rights:
        require(*programs, rights=rights)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, and that everybody may search."""
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@pytest.fixture
def open_files() -> Callable[[], int]:
    """How many descriptors this process has open."""
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def nobody() -> Iterator[None]:
    """Root may do anything, so be nobody until the test ends."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)
