"""Log lines, and the limit on how many there are."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog

from lockstep.config import Log
from lockstep.log import RateLimit, configure


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    out, err = capsys.readouterr()
    assert out == ""
    return [json.loads(line) for line in err.splitlines()]


def test_a_line_is_one_json_object_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    before = datetime.now(UTC)
    configure(Log(format="json"), node="primary-1")
    structlog.get_logger().info("service_started", services=["mirror"])
    (line,) = lines(capsys)
    written = datetime.fromisoformat(str(line.pop("timestamp")))
    assert before <= written <= datetime.now(UTC)
    assert line == {"event": "service_started", "services": ["mirror"], "level": "info", "node": "primary-1"}


def test_text_from_outside_makes_no_second_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    structlog.get_logger().info("message_rejected", why="two\nlines\r\x1b[2J and \u2028 more")
    (line,) = lines(capsys)
    assert line["why"] == "two\nlines\r\x1b[2J and \u2028 more"


def test_where_no_person_looks_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="auto"))
    structlog.get_logger().info("seen")
    assert lines(capsys)[0]["event"] == "seen"


def test_on_a_terminal_lines_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    configure(Log(format="auto"))
    structlog.get_logger().info("service_started", node="here")
    text = terminal.getvalue()
    assert "service_started" in text
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(text)


def test_text_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="text"))
    structlog.get_logger().info("service_started")
    text = capsys.readouterr().err
    assert "service_started" in text
    assert not text.startswith("{")


LEVELS = ["debug", "info", "warning", "error"]


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_below_the_level_is_logged(capsys: pytest.CaptureFixture[str], level: str) -> None:
    configure(Log.model_validate({"level": level, "format": "json"}))
    log = structlog.get_logger()
    for each in LEVELS:
        getattr(log, each)("said")
    assert [line["level"] for line in lines(capsys)] == LEVELS[LEVELS.index(level) :]


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(Log(format="json"))
    try:
        raise OSError("the reason")
    except OSError:
        structlog.get_logger().exception("failed")
    (line,) = lines(capsys)
    assert "OSError: the reason" in str(line["exception"])


# The limit.


def test_a_burst_a_second_passes_and_the_rest_is_counted() -> None:
    limit = RateLimit(3)
    assert [limit.allows(100.0 + number / 10) for number in range(6)] == [True, True, True, False, False, False]
    assert limit.take_suppressed() == 3


def test_the_next_second_has_its_own_burst() -> None:
    limit = RateLimit(1)
    assert [limit.allows(now) for now in (7.0, 7.5, 8.0, 8.1, 9.9, 9.95)] == [True, False, True, False, True, False]


def test_what_was_taken_is_counted_no_more() -> None:
    limit = RateLimit(0)
    limit.allows(1.0)
    limit.allows(1.0)
    assert (limit.take_suppressed(), limit.take_suppressed()) == (2, 0)


def test_the_first_second_of_a_machine_has_a_burst_too() -> None:
    limit = RateLimit(2)
    assert [limit.allows(0.1), limit.allows(0.2), limit.allows(0.3)] == [True, True, False]
