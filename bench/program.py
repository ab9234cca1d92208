"""A program under measurement: started with a folder of its own, ended with its `with`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from lockstep.children import die_with_parent

ROOT = Path(__file__).parent.parent
#: Seconds for a program to start, and for one to end before it is killed.
START, END = 20.0, 5.0


class BenchError(Exception):
    """Something that is measured can't be had, or did not do its work. Its text says what, and the way out."""


class Program:
    """A context manager; subclasses say what to start, and connect in `connect`."""

    process: subprocess.Popen[bytes]

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lockstep-bench-")
        self.folder = Path(self._folder.name)

    def command(self) -> Sequence[str | Path]:
        """What to start."""
        raise NotImplementedError

    def connect(self) -> None:
        """Connect to the started program; may raise OSError while it isn't ready."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Let go of what `connect` made."""

    def __enter__(self) -> Self:
        parent = os.getpid()
        with (self.folder / "log").open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    [str(part) for part in self.command()], stdout=log, stderr=log, cwd=ROOT,
                    preexec_fn=lambda: die_with_parent(parent),
                )  # fmt: skip
            except FileNotFoundError as error:
                self._folder.cleanup()
                raise BenchError(
                    f"{error.filename} is not installed (Debian: apt-get install qemu-system-x86)"
                ) from error
        try:
            self._connect_in_time()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _connect_in_time(self) -> None:
        until = time.monotonic() + START
        while True:
            try:
                self.connect()
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > until:
                    words = (self.folder / "log").read_text(errors="replace")[-2000:]
                    raise BenchError(f"{type(self).__name__} did not start: {error}\n{words}") from error
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self.process.terminate()
        try:
            self.process.wait(END)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def python(module: str) -> list[str]:
    """The start of a command that runs one of this project's modules, as installed; what isn't, from this folder."""
    run = f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-P", "-c", run]
