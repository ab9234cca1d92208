"""Floods a server with SYNs from addresses and ports that nobody has: `python tests/kernel/flood.py --help`.

Run in the client's namespace. The sources are of 198.18.0.0/15, which is there for tests of this kind (RFC 2544);
16,384 ports of one address, then those of the next. Prints one JSON object at the end.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from packets import SYN, inet_sum, segment

SOURCES = "198.18.0.0/15"
#: Frames between two looks at the clock.
BURST = 50

_FIRST = int.from_bytes(socket.inet_aton("198.18.0.1"), "big")
_ETH, _IP = 14, 20
_MSS = struct.pack(">BBH", 2, 4, 1460)


def source(number: int) -> tuple[int, int]:
    """Address and port of the SYN of this number."""
    return _FIRST + (number >> 14), 1024 + (number & 0x3FFF)


class Syn:
    """One frame, changed in place for each source."""

    def __init__(self, address: str, port: int, options: bytes) -> None:
        self.frame = bytearray(
            segment(0, flags=SYN, options=options, source="0.0.0.0", destination=address, sport=0, dport=port)
        )
        self.frame[:12] = bytes.fromhex("525400000002525400000001")
        self._ip_sum = inet_sum(bytes(self.frame[_ETH : _ETH + 10] + self.frame[_ETH + 12 : _ETH + _IP]))
        l4 = bytes(self.frame[_ETH + _IP :])
        pseudo = socket.inet_aton(address) + struct.pack(">HH", 6, len(l4))
        self._tcp_sum = inet_sum(pseudo + l4[:16] + l4[18:])

    def of(self, number: int) -> bytearray:
        """The SYN of this number."""
        address, port = source(number)
        seq = number * 2654435761 & 0xFFFFFFFF
        frame = self.frame
        ends = (address >> 16) + (address & 0xFFFF)
        struct.pack_into(">HI", frame, _ETH + 10, folded(self._ip_sum + ends), address)
        struct.pack_into(">H", frame, _ETH + _IP, port)
        struct.pack_into(">I", frame, _ETH + _IP + 4, seq)
        total = self._tcp_sum + ends + port + (seq >> 16) + (seq & 0xFFFF)
        struct.pack_into(">H", frame, _ETH + _IP + 16, folded(total))
        return frame


def folded(total: int) -> int:
    """The checksum of a sum of 16-bit words."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flood(address: str, port: int, count: int, rate: float, device: str) -> float:
    """Send, at `rate` a second at most; returns the seconds that it took."""
    syn = Syn(address, port, _MSS)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        out.bind((device, 0))
        began = time.monotonic()
        for number in range(count):
            out.send(syn.of(number))
            if number % BURST == 0:
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=60_000)
    parser.add_argument("--rate", type=float, default=1e9, help="frames a second at most")
    parser.add_argument("--device", default="eth0")
    options = parser.parse_args()
    seconds = flood(options.address, options.port, options.count, options.rate, options.device)
    print(json.dumps({"sent": options.count, "seconds": round(seconds, 3)}))


if __name__ == "__main__":
    main()
