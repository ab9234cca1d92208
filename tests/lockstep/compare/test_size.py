"""Files far larger than the memory that comparing them may take, through the command itself."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from packets import ACK, PSH, segment

from lockstep.capture.pcapfile import PcapWriter

FLOWS = 20
#: Bytes of payload in all: more than the address space that the command gets beyond what it has at its start.
SIZE = 120_000_000
#: The interpreter and its libraries map some 130 MB before the first frame.
ADDRESS_SPACE = 240 << 20


def capture(path: Path, cut: int, isn: int, *, wrong: int | None = None, flows: int = FLOWS) -> Path:
    """Streams of `SIZE / FLOWS` bytes in segments of `cut`, by turns; in the first one, byte `wrong` is wrong."""
    words = b"".join(struct.pack(">I", number) for number in range(1 << 16))
    stream = memoryview(words * (SIZE // FLOWS // len(words) + 1))[: SIZE // FLOWS]
    heads = [segment(0, 1, bytes(cut), flags=PSH | ACK, dport=1000 + flow) for flow in range(flows)]
    with path.open("wb") as file:
        writer = PcapWriter(file)
        for at in range(0, len(stream) // cut * cut, cut):
            seq = struct.pack(">I", (isn + at) & 0xFFFFFFFF)
            for flow, head in enumerate(heads):
                body = bytearray(stream[at : at + cut])
                if flow == 0 and wrong is not None and at <= wrong < at + cut:
                    body[wrong - at] ^= 1
                writer.write(head[:38] + seq + head[42:54] + body, at * 1000)
    return path


def compare(*paths: Path) -> tuple[int, dict[str, object]]:
    """The command with a limit on its address space: its exit code, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "lockstep.cli", "compare", "--json", *paths],
        capture_output=True,
        env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
    )
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return capture(tmp_path_factory.mktemp("size") / "a.pcap", 6000, 5)


def test_memory_does_not_grow_with_the_files(primary: Path, tmp_path: Path) -> None:
    """Cut elsewhere, with numbers that wrap on the way, and one wrong byte near the end."""
    assert primary.stat().st_size > SIZE
    wrong = SIZE // FLOWS - 10_000
    secondary = capture(tmp_path / "b.pcap", 3000, (1 << 32) - SIZE // FLOWS // 2, wrong=wrong)
    code, said = compare(primary, secondary)
    assert code == 1
    frames = (wrong // 6000 * FLOWS + 1, wrong // 3000 * FLOWS + 1)
    assert said["divergences"] == [
        {
            "flow": "10.77.0.2:80 10.77.0.1:1000",
            "reason": "data",
            "offset": wrong,
            "primary_frame": frames[0],
            "secondary_frame": frames[1],
        }
    ]


def test_a_file_that_lacks_most_of_the_other_takes_no_more(primary: Path, tmp_path: Path) -> None:
    """Flows whose other half never comes are told once there is no room to wait for it."""
    code, said = compare(primary, capture(tmp_path / "b.pcap", 6000, 5, flows=1))
    assert code == 1
    assert len(said["divergences"]) == FLOWS - 1  # type: ignore[arg-type]
