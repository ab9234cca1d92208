"""A buffer's bytes as a plain pointer, at a fraction of what a memoryview costs."""

from __future__ import annotations

from array import array
from typing import Any

from lockstep.batch import Buffer

try:
    import cython
except ImportError:  # needed to compile, not to run
    from lockstep.wire import uncompiled as cython


class View:
    """Leads to the bytes of a buffer, which nobody can resize as long as this lives. Raises BufferError, TypeError.

    data: its bytes. words: the same as numbers of 32 bits, for an `array('I')`. Uncompiled, both are the buffer.
    """

    def __init__(self, buffer: Buffer | array[int]) -> None:
        if cython.compiled:
            PyObject_GetBuffer(buffer, cython.address(self._held), PyBUF_SIMPLE)  # type: ignore[name-defined,attr-defined]  # noqa: F821
            self.data = pointer(cython.address(self._held))  # type: ignore[name-defined,attr-defined]  # noqa: F821
            self.words = words(cython.address(self._held))  # type: ignore[name-defined,attr-defined]  # noqa: F821
        else:
            self.data: Any = buffer
            self.words: Any = buffer

    def __dealloc__(self) -> None:
        if cython.compiled:
            PyBuffer_Release(cython.address(self._held))  # type: ignore[name-defined,attr-defined]  # noqa: F821
