"""The report of a comparison, as tshark reads it and as we do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from against import compared
from captures import Wire
from mutate import Record, write
from packets import ACK, PSH, segment, udp

from lockstep.capture.pcapfile import read_packets
from lockstep.compare.report import CONTEXT, write_report

PORTS = (1000, 1001)


def captures(folder: Path, linktype: int = 1) -> tuple[Path, Path]:
    """Two flows of 20 segments each, by turns; the 11th of the second is wrong in the secondary's file."""
    paths = []
    for side in range(2):
        wire = Wire()
        for turn in range(20):
            for port in PORTS:
                payload = bytearray(turn.to_bytes(2, "big") * 20)
                payload[7] ^= side == 1 and turn == 10 and port == PORTS[1]
                frame = segment(40 * turn, 5, bytes(payload), flags=PSH | ACK, dport=port)
                wire.add(frame if linktype == 1 else frame[14:])
        records = [Record(record.data, record.time_ns, linktype, len(record.data)) for record in wire.records]
        paths.append(write(folder / f"{'ab'[side]}.pcap", records))
    return paths[0], paths[1]


def report(folder: Path, paths: tuple[Path, Path]) -> Path:
    comparison = compared(*([Record(p.data, p.time_ns, p.linktype) for p in read_packets(path)] for path in paths))
    made = folder / "report.pcapng"
    with made.open("wb") as file:
        write_report(file, lambda side: read_packets(paths[side]), comparison.divergences, comparison.linktypes)
    return made


@pytest.mark.parametrize("linktype", [1, 101])
def test_it_holds_the_frames_that_differ_and_some_around_them(tmp_path: Path, linktype: int) -> None:
    """Frame 22 in both files; three of its flow before and behind, of either file, as they were captured."""
    paths = captures(tmp_path, linktype)
    found = list(read_packets(report(tmp_path, paths)))
    source = {path: list(read_packets(path)) for path in paths}
    expected = range(22 - 2 * CONTEXT, 22 + 2 * CONTEXT + 1, 2)
    for interface, path in enumerate(paths):
        mine = [packet for packet in found if packet.interface == interface]
        assert [packet.data for packet in mine] == [source[path][number - 1].data for number in expected]
        assert {packet.linktype for packet in mine} == {linktype}


@pytest.mark.needs("tshark")
def test_tshark_shows_names_and_comments(tmp_path: Path) -> None:
    made = report(tmp_path, captures(tmp_path))
    fields = ["-e", "frame.interface_name", "-e", "frame.comment"]
    lines = subprocess.run(
        ["tshark", "-r", made, "-T", "json", *fields], capture_output=True, check=True, text=True
    ).stdout
    layers = [entry["_source"]["layers"] for entry in json.loads(lines)]
    told = [
        (layer["frame.interface_name"][0], layer["frame.comment"][0])
        for layer in layers
        if "data" in layer["frame.comment"][0]
    ]
    flow = "10.77.0.2:80 10.77.0.1:1001"
    assert told == [
        ("primary", f"data at byte 407 of {flow}: frame 22, against secondary frame 22"),
        ("secondary", f"data at byte 407 of {flow}: frame 22, against primary frame 22"),
    ]


def test_without_a_divergence_it_is_empty(tmp_path: Path) -> None:
    path = captures(tmp_path)[0]
    assert list(read_packets(report(tmp_path, (path, path)))) == []


def test_several_link_types_become_ethernet(tmp_path: Path) -> None:
    """IP gets an Ethernet header; what is no IP, the ethertype for local experiments (0x88B5)."""
    frames = [Record(udp(b"one")[14:], 1, 101), Record(b"802.11 frame", 2, 105)]
    comparison = compared(frames, [])
    paths = (write(tmp_path / "a.pcap", frames[:1]), write(tmp_path / "b.pcap", []))
    made = tmp_path / "report.pcapng"
    with made.open("wb") as file:
        write_report(file, lambda side: read_packets(paths[side]), comparison.divergences[:1], comparison.linktypes)
    (packet,) = read_packets(made)
    assert (packet.linktype, packet.data[12:]) == (1, b"\x08\0" + frames[0].data)
