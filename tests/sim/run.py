"""Runs seeds: `python tests/sim/run.py --seeds 200`. See `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
sys.path.append(str(TESTS.parent))  # last: a copy of the sources in PYTHONPATH goes before it

from sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
