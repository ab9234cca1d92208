"""A VLAN on eth0: the kernel's own sub-interface, or two small eBPF programs where 8021q is missing.

Some kernels for virtual machines come without 8021q. There the addresses of the VLAN stand on eth0
itself; a program at its way out tags IPv4 and ARP from the VLAN's network, and one at its way in
takes the tag off. On the wire the frames are the same.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import platform
import struct
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

TAG_TYPE = 0x8100

# <linux/bpf.h>
_BPF_PROG_LOAD, _SCHED_CLS = 5, 3
_SKB_VLAN_PRESENT, _SKB_VLAN_TCI = 20, 24  # in struct __sk_buff
_VLAN_PUSH, _VLAN_POP = 18, 19
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_INGRESS, _EGRESS = "ffff:fff2", "ffff:fff3"

_libc = ctypes.CDLL(None, use_errno=True)


def add(ip: Any, eth0: int, vlan_id: int, address: str, prefix: int) -> None:
    """Give interface number `eth0` an address on a VLAN; raises OSError where neither way works."""
    try:
        ip.link("add", ifname=f"eth0.{vlan_id}", kind="vlan", link=eth0, vlan_id=vlan_id)
    except NetlinkError as error:
        if error.code != 95:  # EOPNOTSUPP: no such kind of interface in this kernel
            raise
        _tag_by_program(ip, eth0, vlan_id, ipaddress.IPv4Interface(f"{address}/{prefix}"))
        device = eth0
    else:
        device = ip.link_lookup(ifname=f"eth0.{vlan_id}")[0]
        ip.link("set", index=device, state="up")
    ip.addr("add", index=device, address=address, prefixlen=prefix)


def _tag_by_program(ip: Any, eth0: int, vlan_id: int, own: ipaddress.IPv4Interface) -> None:
    ip.tc("add", "clsact", eth0)
    for parent, program in ((_INGRESS, _untag(vlan_id)), (_EGRESS, _tag(vlan_id, own))):
        fd = _load(program)
        try:
            ip.tc("add-filter", "bpf", eth0, ":1", fd=fd, name="vlan", parent=parent, classid=1, direct_action=True)
        finally:
            os.close(fd)


def _op(code: int, target: int = 0, source: int = 0, jump: int = 0, value: int = 0) -> bytes:
    """One instruction, `struct bpf_insn`."""
    return struct.pack("<BBhI", code, source << 4 | target, jump, value)


_KEEP_CONTEXT = _op(0xBF, 6, 1)  # r6 = r1; BPF_LD_ABS reads through r6
_OUT = _op(0xB7, 0) + _op(0x95)  # r0 = TC_ACT_OK; exit


def _tag(vlan_id: int, own: ipaddress.IPv4Interface) -> bytes:
    """Tag a frame whose IPv4 source (or ARP sender) is in the network of `own`."""
    network, mask = int(own.network.network_address), int(own.network.netmask)
    return b"".join([
        _KEEP_CONTEXT,
        _op(0x28, value=12),  # r0 = EtherType
        _op(0x15, 0, jump=3, value=0x0806),  # ARP
        _op(0x55, 0, jump=9, value=0x0800),  # neither: out
        _op(0x20, value=26),  # r0 = IPv4 source
        _op(0x05, jump=1),
        _op(0x20, value=28),  # r0 = ARP sender
        _op(0x54, 0, value=mask),  # w0 &= mask
        _op(0x56, 0, jump=4, value=network),  # if w0 != network: out
        _op(0xBF, 1, 6),
        _op(0xB7, 2, value=int.from_bytes(TAG_TYPE.to_bytes(2, "big"), "little")),
        _op(0xB7, 3, value=vlan_id),
        _op(0x85, value=_VLAN_PUSH),
        _OUT,
    ])  # fmt: skip


def _untag(vlan_id: int) -> bytes:
    """Take the tag off a frame of this VLAN."""
    return b"".join([
        _KEEP_CONTEXT,
        _op(0x61, 0, 1, jump=_SKB_VLAN_PRESENT),  # r0 = tagged?
        _op(0x15, 0, jump=5),
        _op(0x61, 0, 1, jump=_SKB_VLAN_TCI),
        _op(0x54, 0, value=0x0FFF),
        _op(0x55, 0, jump=2, value=vlan_id),
        _op(0xBF, 1, 6),
        _op(0x85, value=_VLAN_POP),
        _OUT,
    ])  # fmt: skip


def _load(program: bytes) -> int:
    """Hand a program to the kernel; the descriptor of it."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(95, f"no 8021q in this kernel, and no bpf(2) number known for {platform.machine()}")
    code = ctypes.create_string_buffer(program, len(program))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQ44x", _SCHED_CLS, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license_)
    )
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    fd: int = _libc.syscall(number, _BPF_PROG_LOAD, buffer, len(attributes))
    if fd < 0:
        raise OSError(ctypes.get_errno(), f"bpf: {os.strerror(ctypes.get_errno())}")
    return fd
