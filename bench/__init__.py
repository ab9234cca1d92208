"""Measures Lockstep beside QEMU's filters and beside what the machine can do: `python -m bench --help`.

Nothing here belongs to the product, and nothing in `tests/` measures time: figures come from here alone.
"""
