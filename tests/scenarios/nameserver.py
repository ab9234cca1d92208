"""A guest that answers every DNS question for an address with one made from the name (RFC 1035 §4).

python nameserver.py

Prints a line once it is ready. The same question has the same answer on every replica.
"""

import hashlib
import socket

_HEADER = 12
_RESPONSE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0100, 0x0080


def address_of(name: str) -> str:
    """The address that a name has here."""
    return "10." + ".".join(map(str, hashlib.sha256(name.encode()).digest()[:3]))


def answer(query: bytes) -> bytes:
    """The response to a query with one question; raises ValueError or IndexError for anything else."""
    labels, at = [], _HEADER
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii"))
        at += 1 + query[at]
    question = query[_HEADER : at + 5]
    flags = int.from_bytes(query[2:4], "big") & _RECURSION_DESIRED | _RESPONSE | _RECURSION_AVAILABLE
    record = (
        b"\xc0\x0c" + b"\0\1\0\1" + (60).to_bytes(4, "big") + b"\0\4" + socket.inet_aton(address_of(".".join(labels)))
    )
    return query[:2] + flags.to_bytes(2, "big") + b"\0\1\0\1\0\0\0\0" + question + record


def main() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 53))
        print("{}", flush=True)
        while True:
            query, client = server.recvfrom(4096)
            try:
                server.sendto(answer(query), client)
            except (ValueError, IndexError):
                continue


if __name__ == "__main__":
    main()
