"""What two files say in one direction of one TCP connection: which bytes, at which numbers, in which frames.

A *piece* is bytes at consecutive sequence numbers and the frame of each file in which they stood. It is
*pending* while one file alone has said it, and *settled* once both have; settled pieces are kept for a
while, since a retransmission says them again. How either file cuts, doubles or reorders its segments
makes no difference: at the end, what is pending is what the files differ in.

One file can say two things at one place: a retransmission with other bytes, a keep-alive's garbage byte, a
connection that uses the numbers of an earlier one. So pieces lie in *layers*: within a layer none overlap,
and what contradicts a layer goes to the next. The files are equal where they say the same *set* of bytes.

Bytes that a snap length left out are *holes*: pieces without data. A hole of one file agrees with what the
other says there and nobody has matched; but a file's own words, before or behind, say what was in it.

Numbers are plain integers below 2**32 and never wrap in here: a piece that crosses the wrap is two.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

#: The two files, as indices; and in a list of costs, what both have said and is kept.
PRIMARY, SECONDARY, KEPT = 0, 1, 2

SPAN = 1 << 32
#: Bytes and pieces that are kept settled, at least; twice as many at most.
HISTORY = 512 << 10
MOST_SETTLED = 512
#: Pending pieces that contradict another: beyond this nothing is to be hoped for.
MOST_CONTRADICTIONS = 1024
MOST_LAYERS = 8
#: Retransmissions whose frames are remembered, at least; twice as many at most.
MOST_AGAIN = 32

_ZEROS = re.compile(rb"\0+")

#: What of a ledger a piece is held against: bytes of either file; what its own file has said; holes of the
#: other file, and anything of the other file, that are pending.
_BYTES, _OWN, _HOLES, _PENDING = range(4)
#: What a piece costs besides its bytes.
COST = 256


class Piece:
    """Bytes at `start` to `end`; None for a hole.

    frames: number of the frame in the primary's and the secondary's file; 0 where it hasn't said them.
    against: of a piece that contradicts another, the frame in which the other file had said otherwise.
    """

    __slots__ = ("against", "data", "end", "frames", "start")

    def __init__(self, start: int, end: int, data: bytes | None, frames: list[int], against: int = 0) -> None:
        self.start = start
        self.end = end
        self.data = data
        self.frames = frames
        self.against = against

    def part(self, start: int, end: int) -> bytes | None:
        """Its bytes from one number to another."""
        return None if self.data is None else self.data[start - self.start : end - self.start]


class _Layer:
    __slots__ = ("pieces", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.pieces: list[Piece] = []

    def first(self, number: int) -> int:
        """Index of the first piece that ends behind a number."""
        index = bisect_right(self.starts, number) - 1
        return index if index >= 0 and self.pieces[index].end > number else index + 1

    def put(self, piece: Piece) -> None:
        index = bisect_left(self.starts, piece.start)
        self.starts.insert(index, piece.start)
        self.pieces.insert(index, piece)


class Ledger:
    """See the module. costs: of each file's pending pieces, and of settled ones, in bytes; a shared list."""

    __slots__ = ("_again", "_holes", "_layers", "_settled", "_settled_bytes", "contradictions", "costs")

    def __init__(self, costs: list[int]) -> None:
        self._layers = [_Layer()]
        self._settled: list[Piece] = []
        self._settled_bytes = 0
        self.costs = costs
        self._holes = False
        #: What was said again: by which file, from where to where, in which frame.
        self._again: list[tuple[int, int, int, int]] = []
        #: Pieces that went above the first layer and that have not been settled.
        self.contradictions = 0

    @property
    def hopeless(self) -> bool:
        """The files contradict each other in too many places to go on."""
        return self.contradictions > MOST_CONTRADICTIONS or len(self._layers) > MOST_LAYERS

    def say(self, side: int, start: int, data: bytes | None, size: int, frame: int) -> None:
        """One file says `size` bytes from number `start` on; `data` is None for a hole."""
        end = start + size
        if data is None:
            self._holes = True
        if end > SPAN:
            whole = SPAN - start
            self.say(side, start, data and data[:whole], whole, frame)
            self.say(side, 0, data and data[whole:], size - whole, frame)
            return
        layer = self._layers[0]
        index = bisect_right(layer.starts, start)
        if index:
            piece = layer.pieces[index - 1]
            if piece.start == start and piece.end == end and piece.data == data:
                if not piece.frames[side]:
                    piece.frames[side] = frame
                    self.costs[1 - side] -= size + COST
                    self._remember(piece)
                    if self._is_full():
                        self.forget(HISTORY, MOST_SETTLED)
                else:
                    self._repeat(side, start, end, frame)
                return
            behind = piece.end <= start
        else:
            behind = True
        if behind and index == len(layer.starts):
            layer.starts.append(start)
            layer.pieces.append(Piece(start, end, data, [frame, 0] if side == PRIMARY else [0, frame]))
            self.costs[side] += size + COST
            return
        self._meet(side, Piece(start, end, data, [frame, 0] if side == PRIMARY else [0, frame]))

    def _meet(self, side: int, said: Piece) -> None:
        """The general case: what agrees with any layer is settled or known; the rest is new."""
        todo = [(said.start, said.end)]
        for against in (_OWN, _HOLES, _PENDING) if said.data is None else (_BYTES, _HOLES):
            if against == _HOLES and not self._holes:
                continue
            for layer in self._layers:
                left: list[tuple[int, int]] = []
                for start, end in todo:
                    self._meet_in(layer, side, said, start, end, against, left)
                todo = left
                if not todo:
                    return
        for start, end in todo:
            self._place(side, said, start, end)

    def _meet_in(
        self, layer: _Layer, side: int, said: Piece, start: int, end: int, against: int, left: list[tuple[int, int]]
    ) -> None:
        """Meet one layer with part of what was said; what finds nothing that agrees is added to `left`."""
        index = layer.first(start)
        while index < len(layer.pieces) and layer.pieces[index].start < end:
            piece = layer.pieces[index]
            low, high = max(start, piece.start), min(end, piece.end)
            if start < low:
                left.append((start, low))
            runs = _agreeing(side, said, piece, low, high, against)
            left += _between(runs, low, high)
            if runs and not piece.frames[side]:
                index += self._settle(layer, index, side, said, runs)
            else:
                if runs:
                    self._repeat(side, low, high, said.frames[side])
                index += 1
            start = high
        if start < end:
            left.append((start, end))

    def _settle(self, layer: _Layer, index: int, side: int, said: Piece, runs: list[tuple[int, int]]) -> int:
        """Settle parts of the other file's pending piece at `index`; how many pieces stand in its place."""
        piece = layer.pieces[index]
        self.costs[1 - side] -= piece.end - piece.start + COST
        self.contradictions -= layer is not self._layers[0]
        frames = list(piece.frames)
        frames[side] = said.frames[side]
        parts = []
        at = piece.start
        for start, end in runs:
            if at < start:
                parts.append(self._pending(layer, 1 - side, piece, at, start))
            data = piece.part(start, end)
            settled = Piece(start, end, said.part(start, end) if data is None else data, frames)
            parts.append(settled)
            self._remember(settled)
            at = end
        if at < piece.end:
            parts.append(self._pending(layer, 1 - side, piece, at, piece.end))
        layer.pieces[index : index + 1] = parts
        layer.starts[index : index + 1] = [part.start for part in parts]
        if self._is_full():
            before = bisect_left(layer.starts, parts[-1].end)
            self.forget(HISTORY, MOST_SETTLED)
            return len(parts) + bisect_left(layer.starts, parts[-1].end) - before
        return len(parts)

    def _pending(self, layer: _Layer, side: int, of: Piece, start: int, end: int) -> Piece:
        """A piece of what one file alone has said, for a layer."""
        self.costs[side] += end - start + COST
        piece = Piece(start, end, of.part(start, end), list(of.frames), of.against)
        if layer is not self._layers[0]:
            self.contradictions += 1
            piece.against = of.against or self.against(1 - side, start, of.frames[side])
        return piece

    def _place(self, side: int, said: Piece, start: int, end: int) -> None:
        """Put what is new where a layer has room for it."""
        todo = self._placed(side, said, [(start, end)])
        if todo and len(self._layers) >= MOST_LAYERS:
            self.forget(0, 0)
            todo = self._placed(side, said, todo)
        if todo:
            layer = _Layer()
            self._layers.append(layer)
            for low, high in todo:
                layer.put(self._pending(layer, side, said, low, high))

    def _placed(self, side: int, said: Piece, todo: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Fill the gaps of each layer; what finds none."""
        for layer in self._layers:
            todo = [rest for low, high in todo for rest in self._place_in(layer, side, said, low, high)]
            if not todo:
                break
        return todo

    def _place_in(self, layer: _Layer, side: int, said: Piece, start: int, end: int) -> list[tuple[int, int]]:
        """Fill the gaps of a layer; what of `start` to `end` is taken there."""
        taken = []
        index = layer.first(start)
        gaps = []
        while index < len(layer.pieces) and layer.pieces[index].start < end:
            piece = layer.pieces[index]
            if start < piece.start:
                gaps.append((start, piece.start))
            taken.append((max(start, piece.start), min(end, piece.end)))
            start = taken[-1][1]
            index += 1
        if start < end:
            gaps.append((start, end))
        for low, high in gaps:
            layer.put(self._pending(layer, side, said, low, high))
        return taken

    # --- what is settled

    def _remember(self, piece: Piece) -> None:
        self._settled.append(piece)
        self._settled_bytes += piece.end - piece.start
        self.costs[KEPT] += piece.end - piece.start + COST

    def _repeat(self, side: int, start: int, end: int, frame: int) -> None:
        self._again.append((side, start, end, frame))
        if len(self._again) > 2 * MOST_AGAIN:
            del self._again[:MOST_AGAIN]

    def _is_full(self) -> bool:
        return self._settled_bytes > 2 * HISTORY or len(self._settled) > 2 * MOST_SETTLED

    def forget(self, size: int, most: int) -> None:
        """Give up the oldest settled pieces, but for `most` pieces of `size` bytes."""
        settled = self._settled
        keep = len(settled)
        kept = 0
        while keep and len(settled) - keep < most and kept + settled[keep - 1].end - settled[keep - 1].start <= size:
            keep -= 1
            kept += settled[keep].end - settled[keep].start
        gone = set(map(id, settled[:keep]))
        del settled[:keep]
        self.costs[KEPT] -= self._settled_bytes - kept + COST * keep
        self._settled_bytes = kept
        for layer in self._layers:
            layer.pieces[:] = [piece for piece in layer.pieces if id(piece) not in gone]
            layer.starts[:] = [piece.start for piece in layer.pieces]
        while len(self._layers) > 1 and not self._layers[-1].pieces:
            self._layers.pop()

    # --- what is not

    def leftover(self) -> list[Piece]:
        """What one file says and the other does not."""
        left = [piece for layer in self._layers for piece in layer.pieces if not (piece.frames[0] and piece.frames[1])]
        return [part for piece in left for part in self._unexcused(piece)] if self._holes else left

    def _unexcused(self, piece: Piece) -> list[Piece]:
        """What of a pending piece no hole of the other file accounts for. A hole itself needs to meet anything."""
        other = SECONDARY if piece.frames[PRIMARY] else PRIMARY
        known: list[tuple[int, int]] = []
        holes: list[tuple[int, int]] = []
        for layer in self._layers:
            index = layer.first(piece.start)
            while index < len(layer.pieces) and layer.pieces[index].start < piece.end:
                met = layer.pieces[index]
                index += 1
                if met.frames[other]:
                    span = (max(met.start, piece.start), min(met.end, piece.end))
                    (holes if met.data is None else known).append(span)
        if piece.data is None:
            parts = _between(_union(known + holes), piece.start, piece.end)
        else:
            # Where the other file says something else, no hole excuses this.
            parts = _between(_union(holes), piece.start, piece.end)
            parts = _union(parts + known)
        return [Piece(start, end, piece.part(start, end), piece.frames, piece.against) for start, end in parts]

    def expects(self, side: int, start: int, data: bytes) -> bool:
        """Whether the other file alone has said this."""
        for piece in self._at(start):
            size = min(len(data), piece.end - start)
            if not piece.frames[side] and piece.part(start, start + size) in (None, data[:size]):
                return True
        return False

    def against(self, side: int, number: int, frame: int) -> int:
        """The frame in which one file says a byte at a number, as far as that is known; 0 if it says none.

        Of several, one of which something is pending, and that stands about where the other's `frame` stands.
        """
        said = [again for who, start, end, again in self._again if who == side and start <= number < end]
        pending: list[int] = []
        for piece in self._at(number):
            if piece.frames[side]:
                (said if piece.frames[1 - side] else pending).append(piece.frames[side])
        return min(pending or said, key=lambda known: abs(known - frame), default=0)

    def facing(self, piece: Piece) -> int:
        """The frame in which the other file says otherwise than a pending piece does at its start; 0 if it doesn't."""
        other = SECONDARY if piece.frames[PRIMARY] else PRIMARY
        own = piece.frames[1 - other]
        for met in self._at(piece.start):
            if met.frames[other] and not met.frames[1 - other]:
                return self.against(other, piece.start, own)
        known = [frame for frame in (piece.against, self.against(other, piece.start, own)) if frame]
        return min(known, key=lambda frame: abs(frame - own), default=0)

    def _at(self, number: int) -> Iterator[Piece]:
        for layer in self._layers:
            index = layer.first(number)
            if index < len(layer.pieces) and layer.pieces[index].start <= number:
                yield layer.pieces[index]


def _agreeing(side: int, said: Piece, piece: Piece, start: int, end: int, against: int) -> list[tuple[int, int]]:
    """Where, from `start` to `end`, a piece says what `side` says now."""
    mine, theirs = said.part(start, end), piece.part(start, end)
    if against == _BYTES:
        if mine is None or theirs is None:
            return []
        if mine == theirs:
            return [(start, end)]
        difference = int.from_bytes(mine, "big") ^ int.from_bytes(theirs, "big")
        equal = _ZEROS.finditer(difference.to_bytes(end - start, "big"))
        return [(start + run.start(), start + run.end()) for run in equal]
    if against == _OWN:
        agrees = bool(piece.frames[side])
    else:
        agrees = not piece.frames[side] and (theirs is None or against == _PENDING)
    return [(start, end)] if agrees else []


def _between(runs: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """What of `start` to `end` no run covers."""
    left = []
    for begin, stop in runs:
        if start < begin:
            left.append((start, begin))
        start = stop
    if start < end:
        left.append((start, end))
    return left


def _union(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs in order, those that touch made one."""
    made: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(made[-1][1], end))
        else:
            made.append((start, end))
    return made
