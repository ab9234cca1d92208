"""A process of services: where it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lockstep.control import ControlError, request


@pytest.mark.parametrize("named", [True, False])
def test_all_threads_stay_on_the_cpu_that_is_named(run_dir: Path, named: bool) -> None:
    cpu = max(os.sched_getaffinity(0))
    config = run_dir / "node.toml"
    config.write_text(f'run_dir = "{run_dir}/s"\n[log]\nlevel = "warning"\n' + f"[cpus]\ncomparer = {cpu}\n" * named)
    service = subprocess.Popen([sys.executable, "-m", "services.comparer", "-c", str(config)])
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                request(f"ipc://{run_dir}/s/comparer.control", "status", 0.5)
                break
            except ControlError:
                assert service.poll() is None
                assert time.monotonic() < deadline
        threads = [int(name.name) for name in Path(f"/proc/{service.pid}/task").iterdir()]
        assert len(threads) > 1, "ZeroMQ has threads of its own"
        where = {frozenset(os.sched_getaffinity(thread)) for thread in threads}
        assert where == {frozenset({cpu}) if named else frozenset(os.sched_getaffinity(0))}
    finally:
        service.terminate()
        service.wait()
