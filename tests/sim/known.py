"""Faults of the cores that the simulator has found and that are not mended yet: name → what it is.

A name in here is not reported (nor, where it would spoil everything behind it, brought about), so that
the seeds stay green and new faults stand out; `run.py --strict` reports them all. Take a name out
when its fault is mended.
"""

KNOWN: dict[str, str] = {}
