"""A frame in words, one line a layer, as impacket decodes it.

impacket is written for packets that it made itself. On others it raises whatever its indexing and
unpacking raise, and an IP option of length 0 keeps it busy for ever. So nothing that it raises leaves
this module, and such options never reach it. It is imported with the first frame: never by a service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lockstep.wire import ethernet, frame, icmp, ipv4
from lockstep.wire.frame import Frame, dissect

#: Characters of a line.
LONGEST = 400

_READ = (ethernet.IPV4, ethernet.IPV6, ethernet.ARP)
#: IPv4 options (RFC 791 §3.1).
_END, _NO_OPERATION = 0, 1
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


def decoded(data: bytes) -> list[str]:
    """A line for each header, from Ethernet on; a last one says where impacket had to give up."""
    f = Frame()
    dissect(f, data, 0, len(data))
    if f.ethertype not in _READ:
        return []  # nothing that impacket could add to the bytes
    if f.ethertype == ethernet.IPV4 and _never_ends(data, f.l3):
        return ["an IPv4 option of length 0, which impacket can't read"]
    lines: list[str] = []
    try:
        for layer in _layers(data, f):
            name = type(layer).__name__
            lines.append(_LAYERS.get(name, _any)(layer)[:LONGEST])
            if name == "IP" and layer.get_ip_offmask():
                break  # the middle of a datagram: no header follows
    except Exception as error:
        lines.append(f"impacket can't read on: {type(error).__name__}: {error}"[:LONGEST])
    return lines


def _layers(data: bytes, f: Frame) -> Iterator[Any]:
    """impacket's packets from the outside in, without the innermost data."""
    from impacket import IP6, ImpactPacket
    from impacket.ImpactDecoder import EthDecoder

    try:
        layer = EthDecoder().decode(data)
    except Exception:
        # It gives nothing where anything inside is wrong, so take the headers around that one by one.
        yield ImpactPacket.Ethernet(data)
        if f.ethertype == ethernet.IPV4:
            yield ImpactPacket.IP(data[f.l3 :])
        elif f.ethertype == ethernet.IPV6:
            yield IP6.IP6(data[f.l3 :])
        raise
    while layer is not None and not isinstance(layer, ImpactPacket.Data):
        yield layer
        layer = layer.child()


def _never_ends(data: bytes, at: int) -> bool:
    """Whether the IPv4 packet at `at`, or the one that it quotes in ICMP, has an option of length 0."""
    for _ in range(2):
        if len(data) < at + ipv4.HEADER:
            return False
        end = at + ((data[at] & 0xF) << 2)
        if _has_empty_option(data[at + ipv4.HEADER : end]):
            return True
        if data[at + ipv4.PROTOCOL] != frame.IPPROTO_ICMP:
            return False
        at = end + icmp.HEADER
    return False


def _has_empty_option(options: bytes) -> bool:
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _NO_OPERATION:
            at += 1
        elif at + 1 == len(options) or options[at + 1] == 0:
            return True
        else:
            at += options[at + 1]
    return False


def _ethernet(layer: Any) -> str:
    tags = "".join(f", VLAN {layer.get_tag(index).get_vid()}" for index in range(layer.tag_cnt))
    ends = [bytes(end).hex(":") for end in (layer.get_ether_shost(), layer.get_ether_dhost())]
    return f"Ethernet {ends[0]} → {ends[1]}{tags}"


def _ipv4(layer: Any) -> str:
    marks = [name for name, there in (("DF", layer.get_ip_df()), ("MF", layer.get_ip_mf())) if there]
    if layer.get_ip_offmask():
        marks.append(f"at {layer.get_ip_offmask() * 8}")
    told = f"IPv4 {layer.get_ip_src()} → {layer.get_ip_dst()}, {layer.get_ip_len()} bytes, ttl {layer.get_ip_ttl()}"
    return ", ".join([told, f"id {layer.get_ip_id()}", *marks])


def _ipv6(layer: Any) -> str:
    ends = f"{layer.get_ip_src().as_string().lower()} → {layer.get_ip_dst().as_string().lower()}"
    return f"IPv6 {ends}, {layer.get_payload_length()} bytes behind its header, hop limit {layer.get_hop_limit()}"


def _tcp(layer: Any) -> str:
    flags = " ".join(name for bit, name in enumerate(_FLAGS) if layer.get_th_flags() & 1 << bit)
    ends = f"{layer.get_th_sport()} → {layer.get_th_dport()}"
    urgent = f", urgent {layer.get_th_urp()}" if layer.get_URG() else ""
    said = f"TCP {ends} [{flags}] seq {layer.get_th_seq()} ack {layer.get_th_ack()} window {layer.get_th_win()}{urgent}"
    options = [_tcp_option(bytes(option.get_bytes())) for option in layer.get_options()]
    return f"{said}, options: {', '.join(options)}" if options else said


def _tcp_option(option: bytes) -> str:
    values = [int.from_bytes(option[at : at + 4], "big") for at in range(2, len(option), 4)]
    match option[0], len(option):
        case (0, 1):
            return "end"
        case (1, 1):
            return "nop"
        case (2, 4):
            return f"mss {values[0]}"
        case (3, 3):
            return f"window scale {values[0]}"
        case (4, 2):
            return "sack permitted"
        case (5, size) if size % 8 == 2:
            return "sack " + " ".join(f"{a}-{b}" for a, b in zip(values[::2], values[1::2], strict=True))
        case (8, 10):
            return f"timestamps {values[0]} {values[1]}"
    return f"kind {option[0]} {option[2:].hex()}".rstrip()


def _udp(layer: Any) -> str:
    return f"UDP {layer.get_uh_sport()} → {layer.get_uh_dport()}, {layer.get_uh_ulen()} bytes"


def _icmp(layer: Any) -> str:
    kind = layer.get_icmp_type()
    told = f"ICMP type {kind} ({layer.get_type_name(kind)}), code {layer.get_icmp_code()}"
    if kind in (icmp.ECHO_REPLY, icmp.ECHO_REQUEST):
        told += f", id {layer.get_icmp_id()}, seq {layer.get_icmp_seq()}"
    return told


def _icmpv6(layer: Any) -> str:
    kind = layer.get_type()
    told = f"ICMPv6 type {kind}, code {layer.get_code()}"
    if kind in (icmp.V6_ECHO_REPLY, icmp.V6_ECHO_REQUEST):
        told += f", id {layer.get_echo_id()}, seq {layer.get_echo_sequence_number()}"
    return told


def _any(layer: Any) -> str:
    """A layer in impacket's own words, without the layers that it contains."""
    inner = layer.child()
    said, contained = str(layer), str(inner) if inner is not None else ""
    return " ".join(said.removesuffix(contained).split())


_LAYERS: dict[str, Callable[[Any], str]] = {
    "Ethernet": _ethernet,
    "IP": _ipv4,
    "IP6": _ipv6,
    "TCP": _tcp,
    "UDP": _udp,
    "ICMP": _icmp,
    "ICMP6": _icmpv6,
}
