"""Runs the mirror: `python -m services.mirror -c node.toml`."""

import sys

from lockstep.service import main
from services.mirror import core

if __name__ == "__main__":
    sys.exit(main("mirror", core.__doc__))
