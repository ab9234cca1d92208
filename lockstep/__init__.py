"""Lockstep: a COLO network proxy made of processes joined by ZeroMQ."""

import sys
from pathlib import Path

__version__ = "0.1.0"


def _leave_script_folder() -> None:
    """Take the folder of the started script out of the import path.

    Python puts it there; a `services.py` among the scripts (impacket installs one) would hide our package.
    """
    folder = str(Path(sys.argv[0]).resolve().parent) if getattr(sys, "argv", None) else ""
    if folder and sys.path[:1] == [folder] and Path(folder, "services.py").exists():
        del sys.path[0]


_leave_script_folder()
