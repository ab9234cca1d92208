"""What people see of a comparison: a progress bar and a table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from lockstep.compare.comparison import Comparison, Divergence

#: First bytes of a gzip file: how much is in it nobody knows before.
_GZIP = b"\x1f\x8b"
#: Bytes of a record's header in a pcap file; a pcapng block's are more, but not by much.
_RECORD = 16
_EVERY = 2000


class Progressing:
    """The bar, on stderr, where that is a terminal; otherwise nothing."""

    def __init__(self, paths: Sequence[Path]) -> None:
        console = Console(stderr=True)
        self._progress: Progress | None = None
        self._frames = self._bytes = 0
        if not console.is_terminal:
            return
        total = _total(paths)
        columns = (
            TextColumn("comparing"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[frames]:,} frames"),
        )
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task("", total=total, frames=0)

    def __enter__(self) -> Progressing:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, size: int) -> None:
        """One more frame, of so many bytes."""
        if self._progress is None:
            return
        self._frames += 1
        self._bytes += size + _RECORD
        if self._frames % _EVERY == 0:
            self._progress.update(self._task, completed=self._bytes, frames=self._frames)


def _total(paths: Sequence[Path]) -> int | None:
    """Bytes of all files; None where that isn't known before."""
    total = 0
    try:
        for path in paths:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                if file.read(len(_GZIP)) == _GZIP:
                    return None
            total += path.stat().st_size
    except OSError:
        return None  # whoever reads it will tell
    return total


def show(comparison: Comparison, paths: tuple[Path, Path], seconds: float, report: Path | None) -> None:
    """Print every divergence, and what it comes to."""
    console = Console(highlight=False, soft_wrap=True)
    found = comparison.divergences
    if console.is_terminal and found:
        console.print(_table(found))
    else:
        for divergence in found:
            print(_line(divergence), file=sys.stdout)
    primary, secondary = comparison.frames
    names = [_printable(path) for path in paths]
    compared = (
        f"{primary:,} frames of {names[0]} and {secondary:,} of {names[1]} in {comparison.flows:,} flows, "
        f"{comparison.unchecked:,} unchecked, {seconds:.1f} s"
    )
    if not found:
        console.print(f"[green]equal[/green]: {escape(compared)}")
    else:
        flows = f"{len(found):,} flow{'s' * (len(found) != 1)}"
        console.print(f"[bold red]different[/bold red] in {flows}: {escape(compared)}")
    if report is not None:
        console.print(f"report: {escape(_printable(report))}")


def _printable(path: Path) -> str:
    """A file's name, which may be no UTF-8, as the text streams of any locale take it."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _table(found: Sequence[Divergence]) -> Table:
    table = Table("flow", "reason", box=None, header_style="bold")
    for name in ("offset", "primary frame", "secondary frame"):
        table.add_column(name, justify="right")
    for divergence in found:
        finding = divergence.finding
        frames = (str(frame) if frame else "-" for frame in (finding.primary_frame, finding.secondary_frame))
        table.add_row(divergence.flow, finding.reason, f"{finding.offset:,}", *frames)
    return table


def _line(divergence: Divergence) -> str:
    finding = divergence.finding
    where = [
        f"{name} frame {frame}"
        for name, frame in (("primary", finding.primary_frame), ("secondary", finding.secondary_frame))
        if frame
    ]
    return f"{divergence.flow}: {finding.reason} at byte {finding.offset}, {', '.join(where)}"
