"""The trace in words, for whoever looks into a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sim.wire import Packet, parse

_FLAGS = ((0x02, "SYN"), (0x01, "FIN"), (0x04, "RST"), (0x08, "PSH"))


def packet(raw: bytes, vnet: int) -> str:
    """One frame in a few words."""
    p: Packet = parse(raw, vnet)
    if p.kind == "tcp":
        flags = " ".join(name for bit, name in _FLAGS if p.flags & bit)
        ack = f" ack {p.ack}" if p.flags & 0x10 else ""
        stamps = f" ts {p.stamps[0]}/{p.stamps[1]}" if p.stamps else ""
        sack = f" sack {p.sack}" if p.sack else ""
        size = f" +{len(p.payload)}" if p.payload else ""
        checksum = "" if p.checksum == "right" else f" ({p.checksum})"
        return f"{p.sport}>{p.dport} {flags} {p.seq}{size}{ack}{stamps}{sack}{checksum}"
    if p.kind == "udp":
        return f"udp {p.sport}>{p.dport} +{len(p.payload)} {p.payload[:4].hex()}"
    return f"{p.kind} +{len(raw)}"


def item(what: Any) -> str:
    """What went into a core, or came out."""
    if type(what).__name__ == "Frames":
        return f"(epoch {what[1]}) " + " | ".join(packet(raw, what[0]) for raw in what[2])
    return str(what)


def lines(trace: list[tuple[Any, ...]]) -> Iterator[str]:
    """One line, or a few, for every record."""
    for when, kind, *rest in trace:
        head = f"{when:10.6f}"
        if kind in ("emits", "hears"):
            yield f"{head} {rest[0]} {kind}: {packet(rest[1], rest[2])}"
        elif kind == "got":
            yield f"{head} {rest[0]} got {len(rest[3])} bytes of connection {rest[1]} at {rest[2]}"
        elif kind == "call":
            service, what, said, out = rest
            if what == "tick" and not out:
                continue
            yield f"{head} {service} ◀ {what}: {item(said)}"
            for where, told in out:
                yield f"{'':10}     ▶ {where}: {item(told)}"
        else:
            yield f"{head} ** {kind} {' '.join(map(str, rest))}"
