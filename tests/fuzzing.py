"""Fuzzers are tests whose input is made up at random: `pytest -m fuzz`, for longer with `LOCKSTEP_FUZZ=20000`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

#: Executions of each, in place of the usual number.
EXECUTIONS = int(os.environ.get("LOCKSTEP_FUZZ", "0"))


def fuzz(usual: int) -> Callable[[Any], Any]:
    """Mark a test as a fuzzer; it stands over `given`. usual: executions where nobody asked for more."""
    how = settings(
        max_examples=EXECUTIONS or usual,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )

    def marked(test: Any) -> Any:
        test = pytest.mark.fuzz(how(test))
        return pytest.mark.timeout(3600)(test) if EXECUTIONS else test

    return marked
