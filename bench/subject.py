"""What is measured: a program that takes two streams of frames and gives one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.checks import differences
from bench.program import Program
from bench.traffic import Traffic
from bench.usage import cpu_seconds, peak_rss_mb
from lockstep.batch import Buffer

#: Seconds without any output after which a subject is said to stall.
STALL = 10.0
#: Seconds that are waited for more than was expected.
SILENCE = 0.2


@dataclass(frozen=True, slots=True)
class Fed:
    """What came of feeding a subject.

    seconds: from the first byte in to the last one out. output: all that came out, in the subject's own
    framing. frames: the frames in it.
    """

    seconds: float
    output: Buffer
    stalled: bool
    frames: Callable[[], list[bytes]]

    def wrong(self, wanted: bytes, frames: Callable[[], list[bytes]]) -> list[str]:
        """What is wrong with it, if `wanted`, which holds `frames`, should have come."""
        return [] if self.output == wanted else differences(frames(), self.frames())


class Subject(Program):
    """A comparer, or what stands in for one. `prepare` once, then `feed` in each run."""

    @classmethod
    def prepare(cls, traffic: Traffic, most: int) -> tuple[Any, Any]:
        """The opening and the measured frames in the form that `feed` takes; `most`: bytes a message."""
        raise NotImplementedError

    @classmethod
    def wanted(cls, traffic: Traffic) -> tuple[bytes, bytes]:
        """What must come out for the opening and for the measured frames, in `Fed.output`'s form."""
        return traffic.opening, traffic.measured

    def feed(self, prepared: Any, expected: int) -> Fed:
        """Give the same frames to both inputs; take `expected` bytes of output, and whatever more there is."""
        raise NotImplementedError

    #: Which input gets a frame first, where it matters: 0 primary, 1 secondary.
    first = 0

    def singles(self, traffic: Traffic, each: int, *, opening: bool = False) -> Sequence[Any]:
        """The measured frames (or, to be asked for first, the opening) in groups of `each`, as `put` takes them."""
        raise NotImplementedError

    def put(self, side: int, group: Any) -> None:
        """Give one group to an input: 0 primary, 1 secondary."""
        raise NotImplementedError

    def take(self, size: int, timeout: float) -> int:
        """Take `size` bytes of frames, or what there is with 0; how many, or 0 if they don't come in time."""
        raise NotImplementedError

    def complaints(self) -> list[str]:
        """What it says itself about the run."""
        return []


@dataclass(frozen=True, slots=True)
class Run:
    """One run's figures."""

    frames_per_s: float
    cpu_us_per_frame: float
    rss_mb: float
    wrong: tuple[str, ...]


def run(subject: Subject, traffic: Traffic, prepared: tuple[Any, Any], wanted: tuple[bytes, bytes]) -> Run:
    """Start it, open the flows, measure, check, end it."""
    with subject:
        opened = subject.feed(prepared[0], len(wanted[0]))
        wrong = opened.wrong(wanted[0], lambda: traffic.split(traffic.opening))
        wrong = [f"while the flows open: {what}" for what in wrong]
        if opened.stalled:
            return Run(0.0, 0.0, peak_rss_mb(subject.pid), tuple(wrong))
        before = cpu_seconds(subject.pid)
        fed = subject.feed(prepared[1], len(wanted[1]))
        used = cpu_seconds(subject.pid) - before
        memory = peak_rss_mb(subject.pid)
        wrong += subject.complaints()
    frames = traffic.frames if fed.output == wanted[1] else len(fed.frames())
    if fed.stalled:
        wrong.append(f"stalled after {frames:,} of {traffic.frames:,} frames")
    wrong += fed.wrong(wanted[1], lambda: traffic.split(traffic.measured))
    return Run(frames / fed.seconds if frames else 0.0, used / max(frames, 1) * 1e6, memory, tuple(wrong))
