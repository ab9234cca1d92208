"""What a process has used: CPU time and memory, read from outside it."""

from __future__ import annotations

import time
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, ended ones too, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of that process, <linux/posix-timers.h>


def peak_rss_mb(pid: int) -> float:
    """The most memory the process ever had resident, in MB (10**6 bytes)."""
    return _status(pid, "VmHWM")


def rss_mb(pid: int) -> float:
    """Memory that is resident now, in MB."""
    return _status(pid, "VmRSS")


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has no {name}: it has ended")
