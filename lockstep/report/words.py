"""A divergence in words: what happened, where, and what each packet has to do with it."""

from __future__ import annotations

from lockstep.report.place import CONTRADICTION, sides
from lockstep.report.report import Packet, Report

_REASONS = {
    "data": "The two replicas sent different bytes at one place.",
    "fin": "One replica ended what it sends where the other says more.",
    "syn": "The two replicas opened the connection in different ways: another flag, option or first bytes.",
    "unmatched": "The secondary did not send the same within `compare_timeout`.",
    "limit": "More waits to be compared than the limits allow. That says nothing about what the replicas sent.",
    CONTRADICTION: "The secondary sent other bytes at a place at which it had spoken before.",
}


def describe(report: Report) -> str:
    """One paragraph: what happened, where, and the bytes that differ."""
    said = [_REASONS.get(report.reason, f"The comparer gave `{clean(report.reason)}` as its reason.")]
    stream = report.protocol == "tcp"
    if report.offset is not None:
        of = "of what this side of the connection sends" if stream else "of the payload"
        said.append(f"The place is byte {report.offset:,} {of}, counted from 0.")
    pair = sides(report)
    differing = pair.differing()
    if differing is not None and pair.begin is not None:
        left, right = map(byte, differing)
        again = report.reason == CONTRADICTION
        said.append(
            f"It was {left} and is now {right}." if again else f"The primary has {left}, the secondary {right}."
        )
    elif report.reason == "unmatched" and stream and report.offset is not None and not report.primary:
        said.append(
            "The secondary sent every byte of the packet that waits: what is missing is its ack, its FIN, its RST "
            "or its urgent pointer."
        )
    elif report.reason == "unmatched" and not report.secondary:
        said.append("It sent nothing else at this place either.")
    if report.packets and not any(packet.side == "secondary" for packet in report.packets):
        said.append("None of the secondary's latest packets belongs to this flow.")
    return " ".join(said)


def title(report: Report) -> str:
    """Flow, protocol, VLANs and epoch in one line."""
    source, _, destination = clean(report.flow).partition(" ")
    ends = f"{source} → {destination}" if destination else source
    tags = "".join(f", VLAN {tag}" for tag in report.vlan)
    return f"{ends} ({clean(report.protocol)}{tags}), epoch {report.epoch}"


def comment(report: Report, packet: Packet) -> str:
    """What Wireshark shows for a packet: whose it is, and what of the divergence lies in it."""
    told = [f"{packet.side}, frame {packet.number}, {distance(report, packet)}"]
    if packet.place is None:
        told[0] += ": context of the divergence."
    else:
        stream = f", byte {report.offset} of the {'stream' if report.protocol == 'tcp' else 'payload'}"
        stream = "" if report.offset is None else stream
        told[0] += f": DIVERGENCE ({clean(report.reason)}) at byte {packet.place} of this frame{stream}."
        told.append(describe(report))
    if packet.cut:
        told.append(cut(packet))
    return " ".join(told)


def cut(packet: Packet) -> str:
    """What a packet is that was cut out of a larger one."""
    return f"This is a segment out of a super-frame of {packet.size:,} bytes, its payload from byte {packet.cut:,} on."


def distance(report: Report, packet: Packet) -> str:
    """How long before the report a packet came."""
    if report.time is None or packet.time is None:
        return "at an unknown time"
    return f"{(report.time - packet.time).total_seconds() * 1000:,.1f} ms before"


def byte(value: int) -> str:
    """A byte in hex, and as text where it is some."""
    return f"0x{value:02x} '{chr(value)}'" if 0x20 <= value < 0x7F else f"0x{value:02x}"


def clean(text: str) -> str:
    """Text of another hand, without what would drive a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
