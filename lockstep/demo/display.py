"""What people see: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

#: Seconds between two looks at the figures.
PERIOD = 0.25

#: Column of the table → counter of the comparer.
_COLUMNS = {"released": "released", "held": "held", "divergences": "divergences", "checkpoints": "checkpoint_requests"}


class Display:
    """Prints what happens. Figures are asked for only where a table shows them."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._stage = ""
        self._rate = 0.0
        self._bytes = self._total = 0
        self._counters: Mapping[str, Any] = {}
        self._due = 0.0
        self._measured = (0.0, 0)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            # Refreshed by hand: a thread of rich's would be there when processes are forked.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        """What is going on now."""
        self._stage = text
        self._bytes = self._total = 0
        self._rate, self._counters = 0.0, {}
        if self._live is None:
            self._console.print(text + " …", markup=False)
        else:
            self._refresh()

    def progress(self, done: int, total: int, counters: Callable[[], Mapping[str, Any]]) -> None:
        """`done` of `total` bytes went over; `counters` is asked for the comparer's, four times a second."""
        now = time.monotonic()
        if self._live is None or now < self._due:
            return
        self._due = now + PERIOD
        before, bytes_then = self._measured
        if done >= bytes_then and now > before:
            self._rate = (done - bytes_then) / (now - before) / 1e6
        self._measured = (now, done)
        self._bytes, self._total = done, total
        self._counters = counters()
        self._refresh()

    def note(self, text: str) -> None:
        """Something that people should know, in a line of its own."""
        self._console.print(text, markup=False)

    def verdict(self, scenario: str, ok: bool, sentence: str) -> None:
        """A scenario's one sentence."""
        mark = Text("ok: " if ok else "BAD: ")
        if self._console.is_terminal:
            mark = Text("✔ ", "green") if ok else Text("✘ ", "bold red")
        self._console.print(mark + Text(f"{scenario}: {sentence}"))

    def _refresh(self) -> None:
        assert self._live is not None
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("MB/s", "MiB", *_COLUMNS):
            table.add_column(name, justify="right", min_width=11)
        done = f"{self._bytes / (1 << 20):.0f} of {self._total / (1 << 20):.0f}" if self._total else "-"
        counts = [str(self._counters.get(name, "-")) for name in _COLUMNS.values()]
        table.add_row(f"{self._rate:.0f}", done, *counts)
        self._live.update(Group(Text(self._stage, "bold"), table), refresh=True)
