"""Runs the rewriter: `python -m services.rewriter -c node.toml`."""

import sys

from lockstep.service import main
from services.rewriter import core

if __name__ == "__main__":
    sys.exit(main("rewriter", core.__doc__))
