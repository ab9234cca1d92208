"""What is printed where."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NoReturn

import pytest

from lockstep.demo.display import Display


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def never() -> NoReturn:
    raise AssertionError("the counters were asked for, and nobody shows them")


def test_without_a_terminal_there_are_plain_lines_and_no_questions() -> None:
    out = io.StringIO()
    with Display(out) as shown:
        shown.stage("serve: ipv4")
        shown.progress(1, 2, never)
        shown.verdict("serve", True, "[all] arrived")
        shown.verdict("diverge", False, "not found")
        shown.note("done")
    assert out.getvalue().splitlines() == [
        "serve: ipv4 …",
        "ok: serve: [all] arrived",
        "BAD: diverge: not found",
        "done",
    ]


def test_a_long_line_is_not_broken() -> None:
    out = io.StringIO()
    Display(out).note("word " * 100)
    assert len(out.getvalue().splitlines()) == 1


def test_on_a_terminal_the_table_shows_the_comparers_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with Display(out) as shown:
        shown.stage("serve: ipv4")
        shown.progress(1 << 20, 4 << 20, lambda: {"released": 4711, "held": 12, "divergences": 0})
        shown.verdict("serve", True, "fine")
    assert "4711" in out.getvalue()
    assert "1 of 4" in out.getvalue()
    assert "✔" in out.getvalue()


def test_the_counters_are_asked_for_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    clock = [100.0]
    monkeypatch.setattr("lockstep.demo.display.time.monotonic", lambda: clock[0])
    asked = []

    def counters() -> Mapping[str, Any]:
        asked.append(clock[0])
        return {}

    with Display(Terminal()) as shown:
        for _ in range(1000):
            clock[0] += 0.01
            shown.progress(1, 2, counters)
    assert 35 <= len(asked) <= 41
