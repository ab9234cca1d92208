"""`lockstep demo` as people and scripts run it: exit codes, JSON, and nothing left behind."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios.traffic import LONG, MIB

from lockstep.demo.namespaces import Namespace
from lockstep.demo.stage import environment, wait_for

pytestmark = [pytest.mark.timeout(120)]

COMMAND = [sys.executable, "-c", "from lockstep.cli import main; main()", "demo"]
RUN = {"ok", "network", "wrong_bytes_delivered"}
TRANSFERRED = RUN | {"sha256_ok", "reconnects", "longest_pause_ms", "divergences", "released"}

#: What a run of each scenario must say of itself, and a size at which it shows what it shows.
KEYS = {
    "serve": TRANSFERRED | {"opened_by", "download", "upload"},
    "diverge": RUN | {"planted_offset", "found_offset", "reason", "flow", "bytes", "divergences", "released"},
    "failover": TRANSFERRED | {"direction", "opened_by", "bytes", "failover_ms", "seconds", "mb_per_s"},
}
SIZES = {"serve": 4 * MIB, "diverge": 2 * MIB, "failover": 48 * MIB}


def demo(*options: str | int) -> dict[str, Any]:
    """Run it with `--json`; what it printed to stdout."""
    argv = [*COMMAND, "--json", *map(str, options)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def check(result: dict[str, Any], scenario: str, mode: str) -> None:
    """Its verdict is good, and the figures that it rests on are there."""
    assert (result["scenario"], result["mode"], result["ok"]) == (scenario, mode, True)
    assert result["wrong_bytes_delivered"] == 0
    for run in result["runs"]:
        assert run.keys() >= KEYS[scenario], KEYS[scenario] - run.keys()
        assert run["ok"] is True
        if scenario == "diverge":
            assert (run["divergences"], run["found_offset"]) == (1, run["planted_offset"])
        else:
            assert (run["sha256_ok"], run["divergences"], run["reconnects"]) == (True, 0, 0)


@pytest.mark.root
@pytest.mark.parametrize("capture", ["tap", "packet"])
@pytest.mark.parametrize("scenario", sorted(KEYS))
def test_scenario_in_namespaces(scenario: str, capture: str) -> None:
    """Each scenario's verdict is good on real kernels, whatever captures, and is found in the JSON."""
    options = ["--scenario", scenario, "--size", SIZES[scenario], "--network", "ipv4", "--opened-by", "client"]
    if scenario == "failover":
        options += ["--direction", "upload"]
    check(demo(*options, "--capture", capture), scenario, "namespaces")


def test_everything_in_memory() -> None:
    """Without namespaces the same scenarios give the same verdicts, for every network."""
    result = demo("--capture", "memory", "--size", MIB, "--network", "all")
    assert result["ok"] is True
    assert result["scenarios"].keys() == KEYS.keys()
    for scenario, part in result["scenarios"].items():
        check(part, scenario, "memory")
        assert {run["network"] for run in part["runs"]} == {"ipv4", "ipv6", "vlan"}


# --- interrupted


class Household:
    """A demo that is running, and everything that belongs to it: all that has inherited its mark."""

    def __init__(self, home: Namespace, temporary: Path) -> None:
        self._home, self._temporary = home, temporary
        self._mark = f"SCENARIO_MARK={secrets.token_hex(8)}"
        name, _, value = self._mark.partition("=")
        with home.entered():
            self.before = self._interfaces()
            self.demo = subprocess.Popen(
                [*COMMAND, "--scenario", "serve", "--size", "4GiB", "--capture", "tap"],
                env=environment() | {name: value, "TMPDIR": str(temporary)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
                preexec_fn=heed_interrupts,
            )  # fmt: skip

    def commands(self) -> list[str]:
        """The command lines of its processes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended
        return [line for line in found if line]  # a zombie has none

    def namespaces(self) -> set[str]:
        """The network namespaces that it holds open, by the kernel's names for them."""
        descriptors = Path(f"/proc/{self.demo.pid}/fd").iterdir()
        found = {name for name in map(_target, descriptors) if name.startswith("net:")}
        return found - {_target(Path(self._home.path))}

    def rest(self) -> dict[str, object]:
        """Files and interfaces that were not there before."""
        with self._home.entered():
            interfaces = self._interfaces()
        return {
            "files": sorted(path.name for path in self._temporary.iterdir()),
            "interfaces": interfaces - self.before,
        }

    @staticmethod
    def _interfaces() -> set[str]:
        shown = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        return {line.split()[0] for line in shown.splitlines()}


def heed_interrupts() -> None:
    """What runs in the background of a shell ignores Ctrl-C, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def mounted_namespaces() -> set[str]:
    """Network namespaces that are kept by a mount, as `ip netns` does, and not by a process."""
    mounts = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {fields[3] for fields in mounts if " - nsfs " in " ".join(fields)}


@pytest.fixture
def household(run_dir: Path) -> Iterator[Household]:
    """A demo in the middle of a transfer, in a network namespace of its own where nobody else makes interfaces."""
    home = Namespace("home")
    household = Household(home, run_dir)
    try:
        wait_for(lambda: any("demo.client" in line for line in household.commands()), "a transfer to begin", LONG)
        yield household
    finally:
        household.demo.kill()
        household.demo.communicate()
        home.close()


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left(household: Household, number: signal.Signals) -> None:
    """Ctrl-C, `kill` and even `kill -9` end its processes, namespaces, interfaces and files."""
    commands = household.commands()
    assert {
        name for name in ("mirror", "redirector", "rewriter", "comparer") if f"services.{name} " in " ".join(commands)
    }
    namespaces = household.namespaces()
    assert len(namespaces) >= 4
    household.demo.send_signal(number)
    code = household.demo.wait(LONG)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert (household.commands(), household.rest()) == ([], {"files": [], "interfaces": set()})
    # After SIGKILL the kernel and the janitor need a moment.
    wait_for(lambda: not household.commands(), f"these to end: {household.commands()}", LONG)
    wait_for(lambda: not household.rest()["files"], "its files to go", LONG)
    assert household.rest() == {"files": [], "interfaces": set()}
    # No process is left that could keep one, so only a mount could.
    assert not namespaces & mounted_namespaces()
