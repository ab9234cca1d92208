"""Invariants 1, 3, 7 and 10 at the ends: what mirror and redirector pass on, and who speaks for the guest."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import xxhash

from sim.lives import Violation
from sim.state import State
from sim.wire import RST, SYN

#: Kinds of records in digest mode.
WHOLE, DIGEST, KEY = range(3)


class Voices(State):
    """Of the mirror and the redirector."""

    def _at_mirror(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        if what == "network":
            if [where for where, _ in out] != ["guest", "ingress"] or any(item != said for _, item in out):
                raise Violation(10, "the mirror did not give both guests what came in")
        elif what == "guest":
            if out != [("primary", said)]:
                raise Violation(1, "the mirror gave the guest's frames elsewhere than to the comparer")
            for raw in said[2]:
                self.to_comparer.append((raw, said[0], self.epoch))
        elif what == "released":
            for where, item in out:
                if where != "network" or item != said:
                    raise Violation(3, "the mirror sends something else than what was released")
            if isinstance(said, tuple):
                for raw in said[2]:
                    self._find(
                        self.to_mirror, (raw, said[0]), "the mirror sent a frame that the comparer did not release"
                    )
        elif any(where == "network" for where, _ in out):
            raise Violation(1, f"the mirror sent frames on {what}")
        if out and self.primary_dead:
            raise Violation(7, "the mirror of the dead primary speaks")

    def _at_redirector(self, what: str, said: Any, out: list[Any], events: list[Any]) -> None:
        for where, item in out:
            frames = isinstance(item, tuple)
            if where == "uplink" and not self.speaking:
                raise Violation(7, "the redirector speaks before the failover")
            if where == "to_guest":
                if what == "uplink" and not self.speaking:
                    raise Violation(7, "the uplink is heard before the failover")
                if what == "ingress" and self.speaking:
                    raise Violation(7, "the primary's input is heard after the failover")
            if where == "secondary" and self.speaking and frames:
                raise Violation(7, "the secondary is compared after the failover")
            if where == "digests" and frames:
                if self.speaking:
                    raise Violation(7, "the secondary is compared after the failover")
                if not _tells_of(item, said):
                    raise Violation(5, "the redirector's records are not of what came")
                self.recorded.update(zip(item[2][1:], said[2], strict=True))
                continue
            if what in ("ingress", "uplink", "from_guest") and item != said:
                raise Violation(5, f"the redirector changed what came on {what}")
            if where == "uplink" and what == "from_guest":
                self._speaks(item)

    def _speaks(self, item: Any) -> None:
        """What the secondary says to the world after the failover."""
        for raw in item[2]:
            p = self.reader.read(raw, item[0])
            if p.kind != "tcp" or not p.payload or p.flags & (RST | SYN) or raw in self.under_way:
                continue
            if self._name(p) in self.doomed:
                raise Violation(1, f"bytes of {self._name(p)}, which left unchecked before, go on after the failover")


def _tells_of(records: tuple[int, int, tuple[bytes, ...]], frames: tuple[int, int, tuple[bytes, ...]]) -> bool:
    """Whether records of digest mode are those of these frames, as services/redirector/digest.py describes them."""
    (key, *bodies), raws = records[2], frames[2]
    if records[:2] != frames[:2] or key[0] != KEY or len(bodies) != len(raws):
        return False
    for body, raw in zip(bodies, raws, strict=True):
        expected = bytes((WHOLE,)) + raw
        if body[0] == DIGEST:
            chunk, length = struct.unpack_from(">HH", body, 1)
            parts = [raw[at : at + chunk] for at in range(length, len(raw), chunk)]
            expected = body[:5] + raw[:length] + b"".join(_hash(part, key[1:]) for part in parts)
        if body != expected:
            return False
    return True


def _hash(payload: bytes, secret: bytes) -> bytes:
    if len(secret) == 16:
        return xxhash.xxh3_128(payload, seed=int.from_bytes(secret[:8], "big")).digest()
    return hashlib.blake2b(payload, digest_size=16, key=secret).digest()
