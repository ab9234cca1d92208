"""Runs seeds: `python tests/sim/run.py --seeds 200`. See `--help`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2]))  # last: a copy of the sources in PYTHONPATH goes before it

from sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
