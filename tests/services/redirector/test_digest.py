"""The redirector's records: whatever the frames are, they are told by a second way to make them."""

from __future__ import annotations

import hashlib
import struct
from array import array

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import CLIENT6, FIN, GUEST6, PSH, RST, SYN, URG, arp_reply, segment, timestamps, udp

from lockstep.batch import Batch
from lockstep.wire.frame import TCP, Frame, dissect
from services.redirector.digest import Digester

KEY, SEED = bytes(range(32)), bytes(range(16))
ENDS6 = {"source": GUEST6, "destination": CLIENT6}


def hashed(payload: bytes, secret: bytes) -> bytes:
    if len(secret) == 16:
        return xxhash.xxh3_128_digest(payload, seed=0x0001020304050607)
    return hashlib.blake2b(payload, digest_size=16, key=secret).digest()


def expected(frame: bytes, vnet: int, secret: bytes) -> bytes:
    """By the head of services/redirector/digest.py."""
    f = Frame()
    whole = b"\0" + frame
    if dissect(f, frame, vnet, len(frame)) != TCP or frame[f.l4 + 13] & (SYN | RST | URG):
        return whole
    at, more = (f.l3 + 2, 0) if f.version == 4 else (f.l3 + 4, 40)
    size = len(frame) - f.payload
    if size < 32 or f.l3 + more + int.from_bytes(frame[at : at + 2], "big") != len(frame):
        return whole
    gso_size = int.from_bytes(frame[4:6], "little") if vnet else 0
    chunk = gso_size or (size if size <= 9216 else 1448)
    head, payload = frame[: f.payload], frame[f.payload :]
    parts = [payload[at : at + chunk] for at in range(0, size, chunk)]
    digest = struct.pack(">BHH", 1, chunk, len(head)) + head + b"".join(hashed(part, secret) for part in parts)
    return digest if len(digest) < len(whole) else whole


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, list[bytes]]:
    vnet = draw(st.sampled_from([0, 10, 12]))
    made = []
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["tcp", "tcp", "tcp", "broken", "udp", "arp", "raw"]))
        size = draw(st.sampled_from([0, 1, 31, 32, 33, 1460, 9216, 9217, 30_000]) | st.integers(0, 4000))
        flags = draw(st.sampled_from([0, PSH, FIN, SYN, RST, URG]))
        vlan = draw(st.sampled_from([(), (5,), (5, 6)]))
        options = draw(st.sampled_from([b"", timestamps(1, 2)]))
        gso_size = draw(st.sampled_from([0, 0, 1, 15, 16, 17, 1000, 65535])) if vnet else 0
        ends = draw(st.sampled_from([{}, ENDS6]))
        payload = bytes(range(256)) * (size // 256 + 1)
        frame = segment(
            9, 8, payload[:size], flags=flags, options=options, vlan=vlan, vnet=vnet, gso_size=gso_size, **ends
        )
        if kind == "broken":
            broken = bytearray(frame)
            for _ in range(draw(st.integers(1, 3))):
                broken[draw(st.integers(0, min(len(frame), 90) - 1))] = draw(st.integers(0, 255))
            frame = bytes(broken) + draw(st.binary(max_size=6))
        elif kind == "raw":
            frame = bytes(vnet) + draw(st.binary(min_size=1, max_size=90))
        elif kind != "tcp":
            frame = bytes(vnet) + (udp(payload[:size]) if kind == "udp" else arp_reply())
        made.append(frame)
    return vnet, made


@given(frames(), st.sampled_from([KEY, SEED]), st.sampled_from([bytes, bytearray, memoryview]))
@settings(max_examples=300)
def test_every_frame_has_its_record(made: tuple[int, list[bytes]], secret: bytes, kind: type) -> None:
    """TCP with a payload worth it, by its headers and hashes; all else whole. In any buffer, with nothing changed."""
    vnet, raws = made
    data = kind(b"".join(raws))
    records = Digester(secret).records(Batch(data, array("I", map(len, raws)), vnet, 7))
    assert (records.vnet, records.epoch, records.stable) == (vnet, 7, True)
    assert records.frames() == [b"\2" + secret, *(expected(raw, vnet, secret) for raw in raws)]
    assert bytes(data) == b"".join(raws)


def test_a_record_is_never_longer_than_its_frame_and_a_byte() -> None:
    """A guest on vhost-user names any gso_size: a hash for each byte would be sixteen times the payload."""
    for gso_size in range(1, 40):
        whole = segment(1, 2, bytes(65_000), vnet=10, gso_size=gso_size, partial=True)
        _, record = Digester(SEED).records(Batch.of([whole], 10)).frames()
        assert len(record) <= len(whole) + 1
        assert record[0] == (1 if gso_size >= 17 else 0)


def test_what_was_made_before_stays_as_it_is() -> None:
    digester = Digester(SEED)
    long, short = Batch.of([segment(1, 2, bytes(1000))] * 50), Batch.of([segment(1, 2, b"p" * 1000)])
    before = digester.records(long)
    kept = bytes(before.data)
    digester.records(short)
    assert bytes(before.data) == kept
    assert digester.records(long).frames() == before.frames()


def test_a_secret_of_no_hash_is_refused() -> None:
    for size in (0, 8, 15, 17, 31, 33):
        with pytest.raises(ValueError, match=f"{size} bytes are no secret"):
            Digester(bytes(size))
