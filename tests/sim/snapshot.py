"""Batches and the rest as the trace keeps them: in a form that stays as it is."""

from __future__ import annotations

from typing import Any

from lockstep.batch import Batch
from lockstep.streams import Cut, Event, Gap


def snapshot(item: Any) -> Any:
    """What an item says, in a form that stays as it is."""
    if isinstance(item, Batch):
        return Frames(item.vnet, item.epoch, tuple(item.frames()))
    if isinstance(item, Cut | Gap | Event):
        return item
    if isinstance(item, tuple):
        return tuple(snapshot(part) for part in item)
    return item


class Frames(tuple[int, int, tuple[bytes, ...]]):
    """`(vnet, epoch, frames)` of a batch."""

    __slots__ = ()

    def __new__(cls, vnet: int, epoch: int, frames: tuple[bytes, ...]) -> Frames:
        return tuple.__new__(cls, (vnet, epoch, frames))
