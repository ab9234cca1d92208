"""One connection long enough for its sequence numbers to wrap twice: protected to the end, then failed over.

    python tests/kernel/wrap.py --bytes 9GiB [--failover-before 512MiB] [--network ipv6] [--direction upload]

Every byte is checked at its place, and the SHA-256 of all of them at the end. Prints one JSON object; exits 1
where a byte is wrong, the connection broke, or the flow was not protected until the failover.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]

from scenarios.traffic import LONG, Transfer, end, settled  # noqa: E402

from lockstep.demo.addresses import ADDRESSES  # noqa: E402
from lockstep.demo.stage import Stage  # noqa: E402

UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
#: Sequence numbers come round after this many bytes, wherever they began.
ROUND = 1 << 32
#: Bytes between two lines about how far it is.
STEP = 256 << 20


def size(text: str) -> int:
    """`9GiB` in bytes."""
    found = re.fullmatch(r"(\d+)(KiB|MiB|GiB|)", text)
    if found is None:
        raise argparse.ArgumentTypeError("a size is a number with KiB, MiB, GiB or nothing behind it")
    return int(found[1]) * UNITS[found[2]]


def resident(pid: int) -> int:
    """Most bytes that a process has had in memory."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def run(options: argparse.Namespace) -> dict[str, object]:
    """The transfer and the failover; raises AssertionError where something is not right."""
    began = time.monotonic()
    with (
        Stage(keep_logs=options.keep_logs) as stage,
        Transfer(stage, options.direction, options.bytes, network=options.network) as transfer,
    ):
        until = options.bytes - options.failover_before
        for done in [*range(STEP, until, STEP), until]:
            transfer.until(done)
            rate = transfer.done / (time.monotonic() - began) / 1e6
            print(f"{transfer.done >> 20} MiB, {rate:.0f} MB/s", file=sys.stderr, flush=True)
        counted = stage.status("comparer", timeout=LONG)["counters"]
        divergences = stage.status("comparer", timeout=LONG)["divergences"]
        memory = {name: resident(service.pid) >> 20 for name, service in stage.services.items()}
        assert (counted["divergences"], counted["unprotected_flows"]) == (0, 0), divergences
        assert transfer.running()
        protected = transfer.done
        if options.failover_before:
            stage.services["mirror"].kill()
            end(transfer.servers[0])
            stage.failover(timeout=LONG)
        else:
            settled(stage)
        result = transfer.finish()
    return {
        "bytes": options.bytes,
        "network": options.network,
        "direction": options.direction,
        "whole_rounds_before_failover": protected // ROUND,
        "protected_bytes_before_failover": protected,
        "sha256": result["sha256"],
        "wrong_bytes": result["wrong_bytes_delivered"],
        "reconnects": result["reconnects"],
        "longest_pause_ms": round(result["longest_pause_ms"]),
        "seconds": round(result["seconds"], 1),
        "mb_per_s": round(options.bytes / result["seconds"] / 1e6, 1),
        "peak_mib": memory,
        "comparer": {name: counted[name] for name in sorted(counted) if counted[name]},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=size, default=size("9GiB"), help="of the transfer (9GiB)")
    parser.add_argument(
        "--failover-before", type=size, default=size("512MiB"), help="how long before its end (512MiB); 0: none"
    )
    parser.add_argument("--network", choices=ADDRESSES, default="ipv4")
    parser.add_argument("--direction", choices=("download", "upload"), default="download")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    try:
        result = run(options)
    except AssertionError as error:
        print(f"not right: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
