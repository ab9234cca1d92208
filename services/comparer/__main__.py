"""Runs the comparer: `python -m services.comparer -c node.toml`."""

import sys

from lockstep.service import main
from services.comparer import core

if __name__ == "__main__":
    sys.exit(main("comparer", core.__doc__))
