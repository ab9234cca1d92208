# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The lengths of a message's frames, looked at in one pass."""

from __future__ import annotations

from array import array


def extent(lengths: array[int]) -> tuple[int, int, int]:
    """Sum, smallest and largest of some `array('I')`; three times 0 for none."""
    count = len(lengths)
    if not count:
        return 0, 0, 0
    total = largest = 0
    smallest = lengths[0]
    for index in range(count):
        length = lengths[index]
        total += length
        if length < smallest:
            smallest = length
        if length > largest:
            largest = length
    return total, smallest, largest
