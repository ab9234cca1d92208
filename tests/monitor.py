"""QEMU's monitor, as far as tests speak to it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

PATIENCE = 20.0


class Monitor:
    """QMP at `path`, where a QEMU started with `-qmp unix:PATH,server=on,wait=off` listens, or soon will."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        end = time.monotonic() + PATIENCE
        while self._socket.connect_ex(str(path)):
            assert time.monotonic() < end, f"QEMU does not listen at {path}"
            time.sleep(0.02)
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: str) -> Any:
        """What QEMU returns for a command."""
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        answer: dict[str, Any] = {"event": ""}
        while "event" in answer:
            answer = json.loads(self._lines.readline())
        return answer["return"]

    def wait_for_netdevs(self) -> None:
        """Until every netdev has seen that it is connected: QEMU drops what comes for one that has not.

        Our end may know of the connection before. Where a netdev's line tells of no peer, there is none.
        """
        end = time.monotonic() + PATIENCE
        while True:
            told = self.command("human-monitor-command", **{"command-line": "info network"})
            lines = [line.rstrip() for line in told.splitlines() if ",type=" in line]
            if lines and not any(line.endswith(",") for line in lines):
                return
            assert time.monotonic() < end, told
            time.sleep(0.02)

    def close(self) -> None:
        """Leave it."""
        self._lines.close()
        self._socket.close()
