"""What stands in for the module `cython` where it is not installed: everything runs as plain Python."""

from __future__ import annotations

compiled = False


def address(of: object) -> object:
    """Only compiled code has addresses."""
    raise NotImplementedError
