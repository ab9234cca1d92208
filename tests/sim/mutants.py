"""Takes the guards of the cores out, one at a time, and asks the simulator whether it notices.

    python tests/sim/mutants.py [--only WORD] [--seeds N] [--jobs J]

Each mutant is a change to one file of a copy of the sources: exact old text → new text. The text must
stand there exactly once, else the list is out of date, and that is an error. A mutant that no seed
complains about has survived: then the guard is not needed, or the simulator does not look at it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Seeds that a mutant gets, and seconds.
SEEDS, SECONDS = 1500, 60


@dataclass(frozen=True)
class Mutant:
    """One guard taken out."""

    name: str
    file: str
    old: str
    new: str


_TCP = "services/comparer/tcp.py"
_SAID = "services/comparer/said.py"
_CORE = "services/comparer/core.py"
_TABLE = "services/comparer/table.py"
_EASE = "services/comparer/ease.py"
_WINDOW = "services/comparer/window.py"
_DATAGRAM = "services/comparer/datagram.py"
_REWRITER = "services/rewriter/core.py"
_CONNECTION = "services/rewriter/connection.py"
_REDIRECTOR = "services/redirector/core.py"
_MIRROR = "services/mirror/core.py"

#: The rule that no ack leaves ahead of the secondary's.
_ACK_RULE = "(self.acked is None or diff(ack, self.acked) > 0):\n            return WAIT"

MUTANTS = (
    # 1: data
    Mutant("data is not compared", _TCP, "found = self.said.check(place, buf, payload, end)", "found = EQUAL"),
    Mutant("a different byte is let out", _SAID, "                if said == data[start:end]:", "                if True:"),
    Mutant("a missing byte is let out", _SAID, "        return MISSING", "        return EQUAL"),
    Mutant("the place of a FIN is ignored", _TCP, "                if self.fin != place:", "                if False:"),
    Mutant("a RST needs no RST", _TCP, "            if self._reset_alike(seq, ack, flags) is None:", "            if False:"),
    Mutant("a RST proves more than one", _TCP, "            if used is not None:", "            if False:"),
    Mutant("a SYN needs no SYN", _TCP, "if self.syn_said is None:\n            return WAIT", "if False:\n            return WAIT"),
    Mutant(
        "options of a SYN are not compared", _TCP,
        "        if self.syn_said[1] == said:", "        if self.syn_said[1][:5] == said[:5]:",
    ),
    Mutant("a payload is not compared", _DATAGRAM, "            if said == wanted:", "            if True:"),
    Mutant("a payload proves more than one", _DATAGRAM, "            del self.said[index]", "            pass"),
    Mutant("what the secondary answers its neighbours leaves", _CORE, "if asks(f, data) and bytes", "if bytes"),
    Mutant(
        "the secondary asks in any name", _CORE,
        "bytes(data[f.start + 6 : f.start + 12]) in self._voices:", "True:",
    ),
    Mutant("half of a fragmented datagram leaves", _CORE, "        if whole is None:\n            return\n        f = self._frame",
           "        if whole is None:\n            self._append(self._primary_fragments.clear())\n            return\n        f = self._frame"),
    Mutant("after a difference the flow goes on", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.held:"),
    Mutant("a flow is unprotected in silence", _CORE, 'self._events.append(Event("unprotected", describe(flow.key) | {"key": flow.key, "reason": reason}))', "pass"),
    Mutant("a new connection stays unprotected", _CORE, "flow.state = PROTECTED  # a new connection", "pass"),
    Mutant("a lost secondary is never found again", _CORE, "        self._alone = False\n        self.counters", "        self.counters"),
    # 2: acks and windows
    Mutant("no ack is checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}", f"if False and {_ACK_RULE}"),
    Mutant("the ack of a pure ACK is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and (end > payload or flags & (tcp.FIN | tcp.RST)) and {_ACK_RULE}"),
    Mutant("the ack of data is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and end == payload and {_ACK_RULE}"),
    Mutant("the ack of a FIN is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.FIN and {_ACK_RULE}"),
    Mutant("the ack of a RST is not checked", _TCP, f"if flags & tcp.ACK and {_ACK_RULE}",
           f"if flags & tcp.ACK and not flags & tcp.RST and {_ACK_RULE}"),
    Mutant("acks are compared unsigned", _TCP, _ACK_RULE, "(self.acked is None or ack > self.acked):\n            return WAIT"),
    Mutant("the ack of a FIN is lowered", _EASE, "        return None  # the client's answer would close", "        pass  # the client's answer would close"),
    Mutant("an ack is lowered too little", _EASE, "    _ACK.pack_into(frame, at, flow.acked)", "    _ACK.pack_into(frame, at, (flow.acked + 1) & 0xFFFFFFFF)"),
    Mutant("the checksum of a lowered ack stays", _EASE, "moved32(_CHECKSUM.unpack_from(frame, field)[0], ack, flow.acked)", "_CHECKSUM.unpack_from(frame, field)[0]"),
    Mutant("the window is not lowered", _WINDOW, "return lowered if lowered < window else None", "return None"),
    Mutant("unproven parts leave with the proven", _EASE, "head.vnet, proven // step * step)", "head.vnet, (proven // step + 1) * step)"),
    Mutant("a stuck head leaves unproven", _EASE, "    if proven < size:", "    if False:"),
    Mutant("a FIN leaves with the first part", "lockstep/wire/gso.py", "payload[:at], 0, 0, tcp.FIN | tcp.PSH, step)", "payload[:at], 0, 0, 0, step)"),
    Mutant("the secondary's ACKs leave wherever they stand", _EASE, "    return flow.reached(buf, f.l4)", "    return True"),
    # 3: order
    Mutant("what is proven overtakes the head", _CORE, "if flow.held or flow.state == DIVERGED:", "if flow.state == DIVERGED:"),
    # 4: conservation
    Mutant("frames that a full link refused stay counted", _CORE, '            self.counters["released"] -= len(item)', "            pass"),
    Mutant("evicted frames are not counted", _TABLE, '        self._counters["dropped_evicted"] += dropped', "        pass"),
    # 5: rewriting
    Mutant("seq is not moved", _CONNECTION, "            _move(buf, l4, l4 + tcp.SEQ, self.delta, partial)", "            pass"),
    Mutant("ack is not moved", _CONNECTION, "            _move(buf, l4, l4 + tcp.ACK_NUMBER, -self.delta, partial)", "            pass"),
    Mutant("TSval is not moved", _CONNECTION, "_move(buf, l4, timestamps + 2, self.delta_ts, partial)", "pass"),
    Mutant("TSecr is not moved", _CONNECTION, "_move(buf, l4, timestamps + 6, -self.delta_ts, partial)", "pass"),
    Mutant("SACK edges are not moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(0):"),
    Mutant("the first SACK block alone is moved", _CONNECTION, "for edge in range(2 * blocks):", "for edge in range(2 * min(blocks, 1)):"),
    Mutant("the checksum is not moved", _CONNECTION, "    if not partial:", "    if False:"),
    Mutant("a partial checksum is moved", _CONNECTION, "    if not partial:", "    if True:"),
    Mutant("the clock steps back at the failover", _CONNECTION, "if speaking and self.client_tsecr is not None:", "if False:"),
    Mutant("an error's quotation is not moved", _CONNECTION, "    if new is not None and new != old:", "    if False:"),
    Mutant("a refusal does not reach the secondary", _CONNECTION, "        return self.waiting and self.opened_by_guest and flags", "        return False and flags"),
    Mutant("a released connection is not reset at failover", _REWRITER, "if self._speaking and key in self._doomed and not syn:", "if False:"),
    # 6: epochs
    Mutant("frames of another epoch are heard", _CORE, "        elif batch.epoch == self.epoch:", "        elif True:"),
    Mutant("what the old secondary said counts on", _TCP, "        self.said.clear()\n        self.acked = self.primary_acked\n", "        self.acked = self.primary_acked\n"),
    Mutant("what the old secondary acked counts on", _TCP, "        self.acked = self.primary_acked\n        self.fin = None", "        self.fin = None"),
    Mutant("the old secondary's SYN counts on", _TCP, "        self.probe = None\n        self.syn_said = None", "        self.probe = None"),
    Mutant("a commit lets out what is behind the cut", _CORE, "while flow.held and flow.held[0].number < before:", "while flow.held:"),
    Mutant("a commit lets nothing out", _CORE, "while flow.held and flow.held[0].number < before:", "while False:"),
    Mutant("an abort counts as a commit", _CORE, '        elif cut.phase == "commit":', '        elif cut.phase in ("commit", "abort"):'),
    Mutant("offsets outlive a commit", _REWRITER, "                self._connections.clear()", "                pass"),
    # 7: one voice
    Mutant("the uplink is heard before the failover", _REDIRECTOR, "            if not self._speaking:", "            if False:"),
    Mutant("the ingress is heard after the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["ingress_ignored"]', 'if False:\n            self.counters["ingress_ignored"]'),
    Mutant("the secondary speaks before the failover", _REDIRECTOR, 'if self._speaking:\n            self.counters["uplink_frames_out"]', 'if True:\n            self.counters["uplink_frames_out"]'),
    Mutant("the guest's frames go to the network", _MIRROR, "return [(PRIMARY, item)]", "return [(PRIMARY, item), (NETWORK, item)]"),
    Mutant("the secondary gets no input", _MIRROR, "return [(GUEST, item), (INGRESS, item)]", "return [(GUEST, item)]"),
    # 9: bounds
    Mutant("bytes have no limit", _TABLE, "        return flow.kept() + more > self.config.max_flow_bytes or self.kept + more > self.config.max_bytes", "        return False"),
    Mutant("flows have no limit", _TABLE, "        full = len(self.flows) >= self.config.max_flows", "        full = False"),
    Mutant("half-open flows have no limit", _TABLE, "(syn and len(self.half_open) >= self.config.max_half_open)", "False"),
    Mutant("a flood evicts established flows", _TABLE, "            self._forget(next(iter(self.half_open)))", "            self._forget(next(iter(self.flows)))"),
    # 10: invariance, and the arithmetic under all of it
    Mutant("sequence numbers do not wrap", "lockstep/wire/seqnum.py", "    return ((a - b + 0x80000000) & MASK) - 0x80000000", "    return a - b"),
    Mutant("bytes of the last connection stay", _TCP, "        self.said.clear()\n        self.fin = self.reset_at = None", "        self.fin = self.reset_at = None"),
    Mutant("nobody waits too long", _CORE, "            if flow.held[0].arrived + self._config.compare_timeout <= now:", "            if False:"),
    Mutant("a stuck head is never eased", _CORE, "if isinstance(flow, TcpFlow) and flow.held[0].arrived + STALL <= now:", "if False:"),
)  # fmt: skip


def stale(mutant: Mutant) -> str | None:
    """Why a mutant no longer fits the sources; None if it does."""
    count = (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old)
    return None if count == 1 else f"{mutant.name}: its old text stands {count} times in {mutant.file}"


def copied(folder: Path) -> Path:
    """The sources, without compiled twins, in a folder of their own."""
    for package in ("lockstep", "services"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__")
        )
    return folder


def complaint(folder: Path, seeds: int, seconds: float) -> tuple[int, str] | None:
    """Seeds until the first complaint about the sources in a folder, and that complaint; None if there is none."""
    asked = ["--seeds", str(seeds), "--seconds", str(seconds), "--stop", "--jobs", "1"]
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests/sim/run.py"), *asked],
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        cwd=folder,
    )
    if run.returncode == 0:
        return None
    said = re.search(r"^seed (\d+): (.*)", run.stdout, re.MULTILINE)
    if said is None:  # it doesn't even start
        return 0, (run.stderr.strip().splitlines() or ["nothing said"])[-1]
    return int(said[1]) + 1, said[2]


def tried(mutant: Mutant, seeds: int, seconds: float) -> tuple[int, str] | None:
    """The complaint about one mutant."""
    with tempfile.TemporaryDirectory(prefix="ls-mutant-") as name:
        folder = copied(Path(name))
        file = folder / mutant.file
        file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")
        return complaint(folder, seeds, seconds)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="only mutants whose name or file has this in it")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help=f"seeds of each mutant ({SEEDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help=f"seconds of each ({SECONDS})")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="at once (default: all)")
    asked = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if asked.only in mutant.name or asked.only in mutant.file]
    out_of_date = [why for mutant in chosen if (why := stale(mutant)) is not None]
    for why in out_of_date:
        print(f"OUT OF DATE {why}")
    began = time.monotonic()
    survivors = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        usable = [mutant for mutant in chosen if stale(mutant) is None]
        for mutant, said in zip(usable, pool.map(lambda m: tried(m, asked.seeds, asked.seconds), usable), strict=True):
            if said is None:
                survivors.append(mutant)
                print(f"SURVIVED {asked.seeds} seeds: {mutant.name}", flush=True)
            else:
                print(f"caught after {said[0]} seeds: {mutant.name} ({said[1][:90]})", flush=True)
    caught = len(usable) - len(survivors)
    seconds = time.monotonic() - began
    print(
        f"{caught} of {len(chosen)} caught, {len(survivors)} survived, {len(out_of_date)} out of date, {seconds:.0f} s"
    )
    return 1 if survivors or out_of_date else 0


if __name__ == "__main__":
    sys.exit(main())
