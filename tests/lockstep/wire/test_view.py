"""A view leads to a buffer's bytes, and keeps them where they are."""

from __future__ import annotations

from array import array

import pytest

from lockstep.wire import view as module
from lockstep.wire.view import View

compiled = pytest.mark.skipif(module.__file__.endswith(".py"), reason="only compiled code has pointers to guard")


@compiled
@pytest.mark.parametrize("buffer", [bytearray(b"abc"), array("I", (1, 2, 3))])
def test_nobody_can_resize_the_buffer_until_the_view_is_gone(buffer: bytearray | array[int]) -> None:
    view = View(buffer)
    with pytest.raises(BufferError):
        buffer.append(4)
    del view
    buffer.append(4)
    assert len(buffer) == 4


@compiled
def test_what_is_no_buffer_or_not_in_one_piece_has_no_view() -> None:
    with pytest.raises(TypeError):
        View("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        View(memoryview(b"abcdef")[::2])
