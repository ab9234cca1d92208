"""Bytes of memory that one idle, established connection takes: of the comparer, and of the rewriter.

    python tests/kernel/idle_flows.py [--flows 200000] [--service comparer] [--v6]

A process of its own makes a core, opens connections in it (handshake, a request, an answer of `--bytes`, all
acknowledged), lets them idle until the sweep has passed over all of them, and reports how much it has grown.
Prints one JSON object a service.
"""

from __future__ import annotations

import argparse
import gc
import ipaddress
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

import packets  # noqa: E402
from packets import SYN, segment, timestamps  # noqa: E402

from lockstep.batch import Batch  # noqa: E402
from lockstep.config import Node  # noqa: E402
from lockstep.service import core_of  # noqa: E402
from lockstep.streams import FROM_GUEST, GUEST, PRIMARY, RELEASED, SECONDARY, TO_GUEST  # noqa: E402

SERVICES = ("comparer", "rewriter")
#: Options of a SYN-ACK, as Linux sends them.
OPTIONS = bytes.fromhex("020405b40402") + timestamps(1, 2)[2:] + bytes.fromhex("01030307")
#: Seconds of the core's clock in which its sweep comes by every flow, and history is given up.
LATER = 400


def resident() -> int:
    """Bytes of this process that are in memory."""
    found = re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


class Connections:
    """Opens connections in a core."""

    def __init__(self, size: int, *, v6: bool) -> None:
        node = {"comparer": {"on_divergence": "unprotect"}, "rewriter": {"max_flows": 4_000_000}}
        self.node = Node.model_validate(node)
        self.answer = bytes(range(256)) * (size // 256 + 1)
        self.answer = self.answer[:size]
        self.guest = packets.GUEST6 if v6 else packets.GUEST
        self.first = ipaddress.ip_address("fd78::1" if v6 else "198.18.0.1")

    def ends(self, number: int) -> dict[str, object]:
        """Addresses and ports of the guest's segments."""
        client = str(self.first + (number >> 14))
        return {"source": self.guest, "destination": client, "dport": 1024 + (number & 0x3FFF)}

    def comparer(self, number: int) -> None:
        ends = self.ends(number)
        isn, own, peer = number * 7919, number * 104729, number * 31337 + 1
        end = isn + 1 + len(self.answer)
        said = [
            segment(isn + 1, peer + 100, self.answer, options=timestamps(2, 3), **ends),  # type: ignore[arg-type]
            segment(end, peer + 100, options=timestamps(3, 4), **ends),  # type: ignore[arg-type]
        ]
        primary = [segment(isn, peer, flags=SYN, options=OPTIONS, **ends), *said]  # type: ignore[arg-type]
        secondary = [segment(own, peer, flags=SYN, options=OPTIONS, **ends), *said]  # type: ignore[arg-type]
        left = 0
        for mine, others in zip(primary, secondary, strict=True):
            for stream, frame in ((SECONDARY, others), (PRIMARY, mine)):
                for output in self.core.push(stream, Batch.of([frame]), self.now):
                    left += isinstance(output, tuple) and output[0] == RELEASED
        assert left == len(primary), f"{left} of {len(primary)} frames left"

    def rewriter(self, number: int) -> None:
        ends = self.ends(number)
        isn, own, peer = number * 7919, number * 104729, number * 31337 + 1
        back = {"source": ends["destination"], "destination": ends["source"], "sport": ends["dport"], "dport": 80}
        for stream, to, frame in (
            (GUEST, FROM_GUEST, segment(own, peer, flags=SYN, options=OPTIONS, **ends)),  # type: ignore[arg-type]
            (TO_GUEST, GUEST, segment(peer, isn + 1, b"request", options=timestamps(2, 9), **back)),  # type: ignore[arg-type]
            (GUEST, FROM_GUEST, segment(own + 1, peer + 7, self.answer, options=timestamps(2, 3), **ends)),  # type: ignore[arg-type]
        ):
            assert [where for where, _ in self.core.push(stream, Batch.of([frame]), self.now)] == [to]  # type: ignore[misc]

    def measure(self, service: str, flows: int) -> dict[str, object]:
        """Open them and tell what the process has grown by, in bytes a flow."""
        self.core = core_of(service, self.node)  # type: ignore[arg-type]
        self.now = 0.0
        opens: Callable[[int], None] = getattr(self, service)
        for number in range(100):  # whatever is made at first use
            opens(number)
        gc.collect()
        before = resident()
        for number in range(100, 100 + flows):
            opens(number)
            if number % 1000 == 0:
                self.now += 0.01
        busy = resident()
        for _ in range(LATER):
            self.now += 1
            self.core.tick(self.now)
        gc.collect()
        status = self.core.status()
        assert status.get("flows", status.get("connections")) == flows + 100, status
        return {
            "service": service,
            "flows": flows,
            "bytes_a_flow": round((resident() - before) / flows),
            "bytes_a_flow_before_the_sweep": round((busy - before) / flows),
            "mib": resident() >> 20,
            "bytes_of_each_answer": len(self.answer),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=200_000)
    parser.add_argument("--bytes", type=int, default=1000, help="of each answer (1000)")
    parser.add_argument("--service", choices=SERVICES, help="only this one")
    parser.add_argument("--v6", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(Connections(options.bytes, v6=options.v6).measure(options.service, options.flows)), flush=True)
        return
    for service in [options.service] if options.service else SERVICES:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--service", service, "--here"], check=True)


if __name__ == "__main__":
    main()
