"""Runs the redirector: `python -m services.redirector -c node.toml`."""

import sys

from lockstep.service import main
from services.redirector import core

if __name__ == "__main__":
    sys.exit(main("redirector", core.__doc__))
