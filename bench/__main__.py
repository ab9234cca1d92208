"""Runs the benchmarks: `python -m bench --help`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench.program import BenchError

app = typer.Typer(no_args_is_help=True, add_completion=False)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document for programs.")]
Peer = Annotated[str | None, typer.Option(help="`qemu`: measure QEMU beside it, in turns.", metavar="qemu")]
Runs = Annotated[int, typer.Option(min=1, help="How often each is measured; medians are shown.")]


def _peer(peer: str | None) -> bool:
    if peer not in (None, "qemu"):
        raise typer.BadParameter("the only peer is `qemu`")
    return peer is not None


@app.callback()
def about() -> None:
    """Measure Lockstep beside QEMU's filters, in turns in one call, on this machine.

    Every figure is a median of several runs, and only counts if what came out is what went in: where
    it isn't, it is said. Ratios within one call are worth more than figures of two. QEMU comes from the
    package qemu-system-x86; the proxy bench needs root. For steady figures let nothing else run.
    """


@app.command()
def comparer(
    peer: Peer = None,
    as_json: AsJson = False,
    runs: Runs = 3,
    frames: Annotated[
        int, typer.Option(min=1, help="Measured frames with 10 bytes of payload; with 1460, an eighth.")
    ] = 1_000_000,
    message: Annotated[int, typer.Option(min=1, max=1 << 20, help="Bytes of frames in a message at most.")] = 1 << 20,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this case or kind of cases: full-64, small; repeatable.")
    ] = None,
) -> None:
    """The comparer alone, beside QEMU's colo-compare: frames a second, CPU for each, peak memory.

    Both get the same TCP segments twice, as primary and secondary, in order: ours in messages over
    ipc, QEMU over its socket chardevs. Cases are small (10 bytes of payload) and full (1460), each
    over 1, 64 and 4,096 flows; small-1000000 stands beside QEMU with 10,000. digest and blake2b are
    full with ours in digest mode, by xxh3 and by BLAKE2b. The flows are opened
    before the measurement begins. Beside it: a bare ZeroMQ relay and memcpy, with the same messages.
    """
    from bench import comparer as bench
    from bench import figures

    cases = tuple(case for case in bench.CASES if not only or {case.name, case.kind} & set(only))
    if not cases:
        raise typer.BadParameter(f"no such case; there are {', '.join(case.name for case in bench.CASES)}")
    document = bench.measure(cases, peer=_peer(peer), runs=runs, frames=frames, most=message, say=bench.tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def proxy(
    peer: Peer = None,
    as_json: AsJson = False,
    runs: Runs = 3,
    scale: Annotated[
        float, typer.Option(min=0.001, help="How much work: 1 downloads 96 MiB and sets 60,000 keys.")
    ] = 1.0,
    only: Annotated[list[str] | None, typer.Option(help="Only this workload; repeatable.")] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Ours as well with the services of each node, and with all, in one process.")
    ] = False,
    pin_peer: Annotated[bool, typer.Option("--pin-peer", help="Each QEMU stays on one CPU, as ours do.")] = False,
) -> None:
    """The whole proxy, from network to network: download, redis SET with 1 and 32 clients, ping.

    Client and servers are network namespaces; between them stands in turn a plain bridge, QEMU's four
    filters, and our four services, each a process of its own, on the same devices. Each of ours stays
    on one CPU (the setting `cpus`); QEMU's threads run where they like, but for `--pin-peer`. Needs root,
    iproute2, iputils-ping, redis-server and redis-tools. QEMU's filters stall for good at their first
    divergence, since nothing checkpoints here; that is bounded by a time-out, and said.
    """
    from bench import figures
    from bench import proxy as bench
    from bench.comparer import tell
    from bench.workloads import WORKLOADS

    known = [workload.name for workload in WORKLOADS]
    if unknown := set(only or ()) - set(known):
        raise typer.BadParameter(f"no workload {', '.join(unknown)}; there are {', '.join(known)}")
    document = bench.measure(
        tuple(only or ()), peer=_peer(peer), runs=runs, scale=scale, say=tell, fused=fused, pin_peer=pin_peer
    )
    (figures.dump if as_json else bench.show)(document)


@app.command()
def latency(
    peer: Peer = None,
    as_json: AsJson = False,
    runs: Runs = 3,
    count: Annotated[int, typer.Option(min=20, help="Single frames that are timed.")] = 2000,
    seconds: Annotated[float, typer.Option(min=0.01, help="How long the load of 100,000 frames a second lasts.")] = 3.0,
) -> None:
    """How long a frame takes from the comparer's second input to its output, beside a bare ZeroMQ relay.

    One frame at a time (median), and under 100,000 frames a second, in groups of 100 (p99.9).
    """
    from bench import figures
    from bench import latency as bench
    from bench.comparer import tell

    document = bench.measure(peer=_peer(peer), runs=runs, count=count, seconds=seconds, say=tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def flows(
    as_json: AsJson = False,
    frames: Annotated[int, typer.Option(min=1, help="Measured frames.")] = 1_000_000,
    most: Annotated[int, typer.Option(min=1, help="Flows at most; there are 1, 1,000, 10,000 …")] = 1_000_000,
) -> None:
    """What the comparer costs as flows become many: CPU for each frame, and bytes for each idle flow."""
    from bench import figures
    from bench import flows as bench
    from bench.comparer import tell

    counts = tuple(count for count in bench.COUNTS if count <= most)
    document = bench.measure(counts, frames=frames, most=1 << 20, say=tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def cores(
    as_json: AsJson = False,
    pushes: Annotated[int, typer.Option(min=1, help="Batches of one frame in a round.")] = 400,
) -> None:
    """What each core takes to push a batch of one frame, of 64, and of one super-frame, without ports and links."""
    from bench import cores as bench
    from bench import figures
    from bench.comparer import tell

    document = bench.measure(pushes=pushes, say=tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def digest(
    as_json: AsJson = False,
    frames: Annotated[int, typer.Option(min=1, help="Frames that are measured; of super-frames a fiftieth.")] = 20_000,
) -> None:
    """What digest mode costs the redirector for each frame, by either hash."""
    from bench import digest as bench
    from bench import figures
    from bench.comparer import tell

    document = bench.measure(frames=frames, say=tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def capture(
    as_json: AsJson = False,
    frames: Annotated[int, typer.Option(min=1, help="Frames that are written and read.")] = 50_000,
) -> None:
    """What a frame costs each capture frontend; tap and packet (as root, on devices of their own)."""
    from bench import capture as bench
    from bench import figures
    from bench.comparer import tell

    document = bench.measure(frames=frames, payloads=(10, 1460), say=tell)
    (figures.dump if as_json else bench.show)(document)


@app.command()
def guest(
    as_json: AsJson = False,
    runs: Runs = 3,
    mebibytes: Annotated[int, typer.Option(min=1, max=512, help="What is downloaded.")] = 24,
) -> None:
    """A real guest on vhost-user behind the four services, beside `-netdev tap` alone and QEMU's own filters.

    In turns: a guest whose TAP is the client's own network card, with nothing between; a primary and a
    secondary with filter-mirror, filter-redirector, filter-rewriter and colo-compare in their QEMUs; and
    the two behind our services, on vhost-user. Guests are emulated (`-accel tcg`), of one processor, from
    Debian's cloud kernel, which is downloaded once. Needs root, qemu-system-x86, curl, iproute2 and
    iputils-ping. LOCKSTEP_VM_QEMU names another QEMU.
    """
    from bench import figures
    from bench import guest as bench
    from bench.comparer import tell

    document = bench.measure(runs=runs, mebibytes=mebibytes, say=tell)
    (figures.dump if as_json else bench.show)(document)


def main() -> None:
    """Entry point."""
    try:
        app()
    except BenchError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
