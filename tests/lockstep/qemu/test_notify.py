"""Xen's COLO and our comparer: the words of colo-compare's notify_dev, and what follows from them."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packets import segment

from lockstep.config import Node
from lockstep.qemu.address import Address
from lockstep.qemu.notify import Notify
from lockstep.shell import Shell
from services.comparer.core import Core

PATIENCE = 20.0


def framed(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


class Far:
    """The other end of a socket that we listen on."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.setblocking(False)
        self._got = b""

    def say(self, data: bytes) -> None:
        self._socket.sendall(framed(data))

    def heard(self) -> list[bytes]:
        """What has come so far."""
        with contextlib.suppress(BlockingIOError):
            self._got += self._socket.recv(1 << 16)
        words, rest = [], self._got
        while len(rest) >= 4 and len(rest) >= (end := 4 + int.from_bytes(rest[:4], "big")):
            words.append(rest[4:end])
            rest = rest[end:]
        return words

    def close(self) -> None:
        self._socket.close()


def until(done: Callable[[], object], step: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        step()
        time.sleep(0.001)


@pytest.fixture
def notify(run_dir: Path) -> Iterator[Notify]:
    with contextlib.closing(Notify(Address.parse(f"unix://{run_dir}/notify"), True)) as made:
        yield made


def test_the_greeting_is_answered(notify: Notify, run_dir: Path) -> None:
    with contextlib.closing(Far(run_dir / "notify")) as xen:
        xen.say(b"COLO_USERSPACE_PROXY_INIT")
        until(xen.heard, notify.checkpoints)
        assert xen.heard() == [b"COLO_COMPARE_GET_XEN_INIT"]


def test_a_peer_that_comes_late_or_again_is_asked(notify: Notify, run_dir: Path) -> None:
    """Until it has told of a checkpoint."""
    notify.ask()
    for _ in range(2):
        with contextlib.closing(Far(run_dir / "notify")) as xen:
            until(xen.heard, notify.checkpoints)
            assert xen.heard() == [b"DO_CHECKPOINT"]
    assert notify.counters["asked"] == 2
    with contextlib.closing(Far(run_dir / "notify")) as xen:
        xen.say(b"COLO_CHECKPOINT")
        until(lambda: notify.counters["checkpoints"], notify.checkpoints)
    with contextlib.closing(Far(run_dir / "notify")) as xen:
        xen.say(b"COLO_USERSPACE_PROXY_INIT")
        until(xen.heard, notify.checkpoints)
        assert xen.heard() == [b"COLO_COMPARE_GET_XEN_INIT"]


def test_other_words_are_counted_and_change_nothing(notify: Notify, run_dir: Path) -> None:
    with contextlib.closing(Far(run_dir / "notify")) as xen:
        for word in (b"COLO_CHECKPOINT\0", b"colo_checkpoint", b"x"):
            xen.say(word)
        until(lambda: notify.counters["unknown"] == 3, notify.checkpoints)
        assert notify.counters["checkpoints"] == 0


def test_a_checkpoint_over_notify_lets_out_what_was_held(run_dir: Path) -> None:
    """A frame that nobody matches asks for a checkpoint; once it was made the frame leaves."""
    sockets = {name: run_dir / name for name in ("primary", "secondary", "released", "notify")}
    node = Node.model_validate(
        {
            "run_dir": str(run_dir),
            "links": {
                name: {"endpoint": f"qemu+unix://{sockets[name]}", "server": True}
                for name in ("primary", "secondary", "released")
            },
            "comparer": {"compare_timeout": 0.05, "notify": f"unix://{sockets['notify']}", "notify_server": True},
        }
    )
    with contextlib.ExitStack() as stack:
        shell = Shell(node, {"comparer": Core(node)})
        stack.callback(shell.close)
        ends = {name: stack.enter_context(contextlib.closing(Far(path))) for name, path in sockets.items()}
        lone, both, after = segment(1, 2, b"lone"), segment(5, 2, b"both"), segment(9, 2, b"after")

        def step() -> None:
            shell.step(0.01)

        for _ in range(20):  # everybody is let in
            step()
        ends["primary"].say(lone)
        until(ends["notify"].heard, step)
        assert ends["notify"].heard() == [b"DO_CHECKPOINT"]
        assert ends["released"].heard() == []
        ends["notify"].say(b"COLO_CHECKPOINT")
        until(ends["released"].heard, step)
        assert ends["released"].heard() == [lone]
        # The secondary speaks in the new epoch, though nothing in its stream says so.
        for name in ("primary", "secondary"):
            ends[name].say(both)
        until(lambda: len(ends["released"].heard()) == 2, step)
        ends["primary"].say(after)
        until(lambda: len(ends["notify"].heard()) == 2, step)
        assert ends["released"].heard() == [lone, both]
