"""QEMU's monitor (QMP), for whoever started that QEMU."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

#: Seconds until QEMU listens, and until it answers.
PATIENCE = 60.0


class MonitorError(Exception):
    """QEMU refuses a command, or there is no monitor."""


class Monitor:
    """QMP at `path`, where a QEMU started with `-qmp unix:PATH,server=on,wait=off` listens, or soon will."""

    def __init__(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(PATIENCE)
            end = time.monotonic() + PATIENCE
            while made.connect_ex(str(path)):
                if time.monotonic() > end:
                    raise MonitorError(f"nobody listens at {path}")
                time.sleep(0.05)
            self._lines = made.makefile("rw")
        json.loads(self._lines.readline())
        self.command("qmp_capabilities")

    def command(self, execute: str, **arguments: Any) -> Any:
        """What QEMU returns for a command. Raises MonitorError."""
        self._lines.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise MonitorError(f"{execute}: {answer['error']}")
            if "return" in answer:
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
            if time.monotonic() > end:
                raise MonitorError(f"not all netdevs are connected: {told}")
            time.sleep(0.02)

    def close(self) -> None:
        """Leave it."""
        self._lines.close()
