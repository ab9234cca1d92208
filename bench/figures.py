"""Medians, ratios, and how they are shown."""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def median(values: Iterable[float]) -> float:
    """The median, rounded to what can be told apart."""
    return rounded(statistics.median(values))


def rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def quickest(begin: Callable[[], Callable[[], object]], rounds: int) -> float:
    """Seconds of the quickest round. begin: makes what is measured, anew for each round.

    The cycle collector is at rest about what was there before, as in a service.
    """
    taken = []
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        measured = begin()
        began = time.perf_counter()
        measured()
        taken.append(time.perf_counter() - began)
    return min(taken)


def ratio(one: float | None, other: float | None) -> float | None:
    """How many times the other; None where there is nothing to divide by."""
    return rounded(one / other) if one is not None and other else None


def machine() -> dict[str, Any]:
    """Where this was measured."""
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], notes: Iterable[str] = ()) -> None:
    """A table on the terminal, and what is to be said about it."""
    console = Console(soft_wrap=True)
    table = Table(title=title, box=None, header_style="bold", title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)
    for note in notes:
        console.print(f"  {note}", markup=False, highlight=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def dump(document: Mapping[str, Any]) -> None:
    """The same as JSON, for programs."""
    print(json.dumps(document, indent=2))
