"""Files made to break readers: each is equal to itself, or can't be read; never a traceback."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from against import compared
from captures import conversations, fragments
from mutate import Record, write
from packets import ACK, PSH, SYN, echo_reply, segment, timestamps, udp

from lockstep.compare import CompareOptions, Limits, compare_captures

Equal = Callable[[bytes], int]
SMALL = Limits(max_flows=8, max_flow_bytes=4096, max_bytes=16384, max_history=8192)
KINDS = ("pcap", "pcapng", "pcap.gz", "pcapng.gz")


def frames() -> list[Record]:
    """One of everything."""
    said = [
        segment(5, flags=SYN, options=timestamps(1, 0)),
        segment(6, 1, b"abc", flags=PSH | ACK, options=timestamps(2, 1)),
        segment(9, 1, b"def", source="fd77::2", destination="fd77::1", vlan=(5, 6)),
        udp(b"datagram"),
        echo_reply(1, 1),
        *fragments(bytes(range(32)), 7, (24,)),
    ]
    return [Record(frame, index) for index, frame in enumerate(said)]


@pytest.fixture
def equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Equal:
    """Compare bytes with themselves: 0, or 65 and one line that names the file."""
    path = tmp_path / "hostile"

    def compare(data: bytes) -> int:
        path.write_bytes(data)
        code = compare_captures(CompareOptions(path, path, json=True, partial=bool(len(data) % 2)))
        printed = capsys.readouterr()
        assert code in (0, 65), printed.out
        if code == 65:
            assert printed.err.startswith(f"{path}: at byte ")
            assert printed.err.count("\n") == 1
            assert not printed.out
        return code

    return compare


@pytest.fixture(params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    return write(tmp_path / f"whole.{request.param}", frames()).read_bytes()


def test_cut_at_every_length(equal: Equal, whole: bytes) -> None:
    codes = [equal(whole[:size]) for size in range(len(whole) + 1)]
    assert codes[0] == 65
    assert codes[-1] == 0


def test_every_word_made_huge_or_zero(equal: Equal, whole: bytes) -> None:
    """Each length, count, type and magic in turn; and so in every frame."""
    for at in range(0, len(whole) - 3, 4):
        for value in (0, 0x7FFFFFFF, 0xFFFFFFFC, 1 << 24):
            equal(whole[:at] + struct.pack("<I", value) + whole[at + 4 :])


def test_every_byte_flipped(equal: Equal, whole: bytes) -> None:
    for at, byte in enumerate(whole):
        equal(whole[:at] + bytes((byte ^ (0xFF, 0x80, 0x01)[at % 3],)) + whole[at + 1 :])


@pytest.mark.parametrize("seed", range(4))
def test_bytes_of_conversations_changed_at_random(equal: Equal, tmp_path: Path, seed: int) -> None:
    """Frames whose headers lie in all ways at once."""
    random = Random(seed)
    kind = KINDS[seed % 2]
    whole = write(tmp_path / f"talk.{kind}", conversations(seed)).read_bytes()
    for _ in range(20):
        data = bytearray(whole)
        for _ in range(random.choice((1, 10, 100))):
            data[random.randrange(24, len(data))] = random.randrange(256)
        equal(bytes(data))
        equal(gzip.compress(bytes(data), 1)[: random.randrange(20, len(data))])


@pytest.mark.parametrize("seed", range(4))
def test_where_there_is_no_room_the_reason_is_that(seed: int) -> None:
    """A capture against itself with room for a few flows and segments: what can't be matched in time is a `limit`."""
    records = conversations(seed)
    found = compared(records, records, SMALL).divergences
    assert {divergence.finding.reason for divergence in found} <= {"limit"}


@pytest.mark.parametrize("seed", range(4))
def test_frames_changed_at_random(equal: Equal, tmp_path: Path, seed: int) -> None:
    """The file is right, so every frame is looked at: whatever it claims, it says the same as itself."""
    random = Random(seed)
    for _ in range(10):
        records = []
        for record in conversations(random.randrange(1 << 32)):
            data = bytearray(record.data)
            for _ in range(random.choice((0, 1, 3))):
                if data:
                    data[random.randrange(min(len(data), 80))] = random.randrange(256)
            cut = data[: random.randrange(len(data) + 1)] if random.random() < 0.1 else data
            records.append(Record(bytes(cut), record.time_ns, record.linktype, len(data)))
        assert equal(write(tmp_path / "talk.pcapng", records).read_bytes()) == 0


@pytest.mark.parametrize("linktype", [*range(300)])
def test_every_link_type(equal: Equal, tmp_path: Path, linktype: int) -> None:
    """Known or a stranger, with frames that make no sense in it."""
    random = Random(linktype)
    records = [Record(record.data, record.time_ns, linktype) for record in frames()]
    records += [Record(random.randbytes(size), 1, linktype) for size in range(40)]
    assert equal(write(tmp_path / "any.pcap", records).read_bytes()) == 0
