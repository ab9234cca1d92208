"""The ledger against a model that knows of every number which bytes either file has said there."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from lockstep.compare.ledger import KEPT, PRIMARY, SECONDARY, SPAN, Ledger

SIDES = st.sampled_from((PRIMARY, SECONDARY))
#: (side, how far from the start, payload of few different bytes)
WORDS = st.lists(
    st.tuples(SIDES, st.integers(0, 40), st.binary(min_size=1, max_size=20).map(lambda b: bytes(x % 3 for x in b))),
    max_size=40,
)
STARTS = st.sampled_from((0, 1000, SPAN - 20, SPAN - 1))


def ledger() -> Ledger:
    return Ledger([0, 0, 0])


@given(WORDS, STARTS)
def test_what_is_left_is_what_one_file_alone_has_said(words: list[tuple[int, int, bytes]], start: int) -> None:
    """At each number the files are equal where they said the same set of bytes, in whatever order and pieces."""
    book = ledger()
    said: tuple[dict[int, set[int]], dict[int, set[int]]] = (defaultdict(set), defaultdict(set))
    for frame, (side, place, data) in enumerate(words, 1):
        book.say(side, (start + place) % SPAN, data, len(data), frame)
        for index, byte in enumerate(data):
            said[side][(start + place + index) % SPAN].add(byte)
    left: set[tuple[int, int, int]] = set()
    for piece in book.leftover():
        side = PRIMARY if piece.frames[PRIMARY] else SECONDARY
        assert not piece.frames[1 - side]
        assert piece.data is not None
        for index, byte in enumerate(piece.data):
            assert (side, piece.start + index, byte) not in left, "told twice"
            left.add((side, piece.start + index, byte))
            assert byte in words[piece.frames[side] - 1][2], "the frame holds that byte"
    expected = {
        (side, number, byte)
        for side in (PRIMARY, SECONDARY)
        for number, values in said[side].items()
        for byte in values - said[1 - side][number]
    }
    assert left == expected
    assert (book.costs[PRIMARY] == 0) == (not any(side == PRIMARY for side, _, _ in expected))
    assert (book.costs[SECONDARY] == 0) == (not any(side == SECONDARY for side, _, _ in expected))


@given(WORDS)
def test_costs_are_nothing_when_nothing_is_kept(words: list[tuple[int, int, bytes]]) -> None:
    book = ledger()
    for frame, (_, place, data) in enumerate(words, 1):
        book.say(PRIMARY, place, data, len(data), frame)
        book.say(SECONDARY, place, data, len(data), frame)
    assert book.costs[:2] == [0, 0]
    book.forget(0, 0)
    assert book.costs == [0, 0, 0]
    assert not book.leftover()


def test_history_has_a_bound() -> None:
    """A long stream keeps about a megabyte, and a retransmission of the last half is still known."""
    book = ledger()
    for number in range(4000):
        data = number.to_bytes(4, "big") * 250
        book.say(PRIMARY, number * 1000, data, 1000, number + 1)
        book.say(SECONDARY, number * 1000, data, 1000, number + 1)
    assert book.costs[KEPT] < 3 << 20
    book.say(SECONDARY, 3_600_000, (3600).to_bytes(4, "big") * 250, 1000, 5000)
    assert not book.leftover()
    book.say(SECONDARY, 3_600_000, bytes(1000), 1000, 5001)
    assert next((piece.start, piece.end) for piece in book.leftover()) == (3_600_002, 3_600_004)


def test_a_wrong_byte_is_alone() -> None:
    """Of a segment with one wrong byte the rest is equal, and both frames are known."""
    book = ledger()
    book.say(PRIMARY, 100, b"abcdef", 6, 1)
    book.say(SECONDARY, 100, b"abcxef", 6, 7)
    left = book.leftover()
    assert [(piece.start, piece.data, piece.frames) for piece in left] == [(103, b"d", [1, 0]), (103, b"x", [0, 7])]
    assert [book.facing(piece) for piece in left] == [7, 1]


def test_a_wrong_retransmission_faces_the_frame_about_where_it_stands() -> None:
    """The byte was right in frames 1 and 5 of the one file, and wrong in frame 5 of the other."""
    book = ledger()
    for side in (PRIMARY, SECONDARY):
        book.say(side, 0, b"abc", 3, 1)
    book.say(PRIMARY, 0, b"abc", 3, 5)
    book.say(SECONDARY, 0, b"abx", 3, 5)
    (piece,) = book.leftover()
    assert (piece.start, piece.frames, book.facing(piece)) == (2, [0, 5], 5)


class TestHoles:
    """Bytes that a snap length left out."""

    def test_a_hole_agrees_with_what_the_other_file_says_there(self) -> None:
        for first, second in (((None, b"abcd")), (b"abcd", None)):
            book = ledger()
            book.say(PRIMARY, 0, first, 4, 1)
            book.say(SECONDARY, 0, second, 4, 1)
            assert not book.leftover()

    def test_but_not_where_the_other_file_says_nothing(self) -> None:
        book = ledger()
        book.say(PRIMARY, 0, None, 10, 1)
        book.say(SECONDARY, 0, b"abcd", 4, 1)
        assert [(piece.start, piece.end, piece.frames) for piece in book.leftover()] == [(4, 10, [1, 0])]

    def test_a_hole_hides_no_difference_of_what_both_files_have_elsewhere(self) -> None:
        """Both files have a hole, and a retransmission that was captured, with another byte."""
        for order in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0), (1, 3, 0, 2)):
            words = [(PRIMARY, None, 1), (PRIMARY, b"abcd", 2), (SECONDARY, None, 1), (SECONDARY, b"abxd", 2)]
            book = ledger()
            for index in order:
                side, data, frame = words[index]
                book.say(side, 0, data, 4, frame)
            assert {(piece.start, piece.data) for piece in book.leftover()} == {(2, b"c"), (2, b"x")}, order

    @given(
        st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(0, 12)), max_size=12),
        st.randoms(use_true_random=False),
    )
    def test_the_same_words_in_any_order_leave_nothing(self, words: list[tuple[int, int, int]], random: object) -> None:
        """Pieces of one stream of which only the first bytes were captured."""
        stream = bytes(range(100))
        book = ledger()
        script = [(side, *word) for side in (PRIMARY, SECONDARY) for word in words]
        random.shuffle(script)  # type: ignore[attr-defined]
        for frame, (side, start, size, known) in enumerate(script, 1):
            there = min(size, known)
            if there:
                book.say(side, start, stream[start : start + there], there, frame)
            if size > there:
                book.say(side, start + there, None, size - there, frame)
        assert not book.leftover()
