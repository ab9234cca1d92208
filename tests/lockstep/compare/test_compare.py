"""`lockstep compare` on generated captures: equal ones, one flipped byte, and files that can't be read."""

from __future__ import annotations

import json
from pathlib import Path

import packets
import pytest
from packets import PSH, SYN, from_client, segment

from lockstep.capture.pcapfile import PcapWriter
from lockstep.compare import CompareOptions, compare_captures


def capture(path: Path, frames: list[bytes]) -> Path:
    """A pcap with these frames, a millisecond apart."""
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for number, frame in enumerate(frames):
            writer.write(frame, number * 1_000_000)
    return path


def conversation(isn: int, cut: int, flip: int | None = None) -> list[bytes]:
    """A client's connection on which the guest says 3,000 bytes, in segments of `cut`."""
    said = bytearray(i & 0xFF for i in range(3000))
    if flip is not None:
        said[flip] ^= 1
    frames = [from_client(900, flags=SYN), segment(isn, 901, flags=SYN), from_client(901, isn + 1)]
    for at in range(0, len(said), cut):
        frames.append(segment(isn + 1 + at, 901, bytes(said[at : at + cut]), flags=PSH))
    return frames


def compared(capsys: pytest.CaptureFixture[str], a: Path, b: Path, *guests: str) -> tuple[int, dict[str, object]]:
    code = compare_captures(CompareOptions(a, b, guests, json=True))
    return code, json.loads(capsys.readouterr().out)


def test_streams_cut_elsewhere_with_other_numbers_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = capture(tmp_path / "a.pcap", conversation(5000, 700))
    b = capture(tmp_path / "b.pcap", conversation(0xFFFFFF00, 430))
    code, said = compared(capsys, a, b, packets.GUEST)
    assert code == 0, said
    assert said["divergences"] == []


@pytest.mark.parametrize("at", [0, 699, 700, 2999])
def test_a_flipped_byte_is_found_in_its_flow_at_its_offset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], at: int
) -> None:
    a = capture(tmp_path / "a.pcap", conversation(5000, 700))
    b = capture(tmp_path / "b.pcap", conversation(77, 430, at))
    code, said = compared(capsys, a, b, packets.GUEST)
    (found,) = said["divergences"]  # type: ignore[misc]
    assert code == 1
    assert (found["flow"], found["offset"]) == ("10.77.0.2:80 10.77.0.1:40000", at)
    assert found["primary_frame"] == 4 + at // 700
    assert found["secondary_frame"] == 4 + at // 430


def test_a_missing_end_is_unmatched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = capture(tmp_path / "a.pcap", conversation(5000, 700))
    b = capture(tmp_path / "b.pcap", conversation(5000, 700)[:-1])
    code, said = compared(capsys, a, b)
    assert code == 1
    assert [found["reason"] for found in said["divergences"]] == ["unmatched"]  # type: ignore[attr-defined]


def test_a_file_that_is_no_capture_is_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = capture(tmp_path / "a.pcap", conversation(5000, 700))
    (tmp_path / "b.pcap").write_bytes(b"not a capture, by any means")
    assert compare_captures(CompareOptions(a, tmp_path / "b.pcap")) == 65
    assert "b.pcap" in capsys.readouterr().err


def test_a_guest_that_is_no_address_is_64(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = capture(tmp_path / "a.pcap", conversation(5000, 700))
    assert compare_captures(CompareOptions(a, a, ("nobody",))) == 64
