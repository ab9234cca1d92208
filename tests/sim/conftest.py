"""`python -m pytest tests/sim --seeds 500`."""

from __future__ import annotations

import pytest

#: Seeds of a run without `--seeds`.
USUAL = 60


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=USUAL, help="seeds of the simulator (tests/sim)")
