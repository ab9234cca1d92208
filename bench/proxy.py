"""`python -m bench proxy`: the whole way from network to network, beside QEMU's filters and a plain bridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench import figures
from bench.proxies import AllFused, Bridge, FusedByNode, Ours, PinnedQemuFilters, Proxy, QemuFilters
from bench.topology import Topology
from bench.workloads import WORKLOADS, Workload, greet


@dataclass(slots=True)
class _Seen:
    """One workload's figures through one proxy, run by run."""

    values: list[float] = field(default_factory=list)
    stalls: int = 0
    cpu: dict[str, float] = field(default_factory=dict)

    def figure(self) -> float | None:
        return figures.median(self.values) if self.values else None


def measure(
    names: tuple[str, ...],
    *,
    peer: bool,
    runs: int,
    scale: float,
    say: Callable[[str], None],
    fused: bool = False,
    pin_peer: bool = False,
) -> dict[str, Any]:
    """Every workload through every proxy, in turns; the document that `--json` prints."""
    kinds: list[type[Proxy]] = [Bridge, Ours]
    if peer:
        kinds.insert(1, PinnedQemuFilters if pin_peer else QemuFilters)
    if fused:
        kinds += [FusedByNode, AllFused]
    results, findings = [], []
    idle: dict[str, float] = {}
    for workload in (one for one in WORKLOADS if not names or one.name in names):
        seen = {kind.name: _Seen() for kind in kinds}
        for number in range(runs):
            for kind in kinds:
                said = _once(kind, workload, scale, seen[kind.name], idle)
                value = f"{seen[kind.name].values[-1]:,.5g} {workload.unit}" if not said.stalled else "stalled"
                say(f"{workload.name}, run {number + 1}, {kind.name}: {value}{''.join(f' ({w})' for w in said.wrong)}")
                findings += [f"{workload.name}, run {number + 1}, {kind.name}: {text}" for text in said.wrong]
        for name, one in seen.items():
            if one.stalls:
                findings.append(f"{workload.name}, {name}: stalled for good in {one.stalls} of {runs} runs")
        results.append(_result(workload, seen))
    return {"runs": results, "idle_rss_mb": idle, "findings": findings, "machine": figures.machine()}


@dataclass(slots=True)
class _Said:
    stalled: bool
    wrong: list[str]


def _once(kind: type[Proxy], workload: Workload, scale: float, seen: _Seen, idle: dict[str, float]) -> _Said:
    with Topology() as topology:
        proxy = kind(topology)
        try:
            greet(topology)
            if kind is Ours and not idle:
                idle.update(proxy.memory())
            workload.prepare(topology)
            before = proxy.cpu()
            value = workload.measure(topology, scale)
            proxy.alive()
            after = proxy.cpu()
            if value is None:
                seen.stalls += 1
            else:
                seen.values.append(value)
                seen.cpu = {name: round(after[name] - before[name], 3) for name in after}
            return _Said(value is None, proxy.complaints())
        finally:
            proxy.close()


def _result(workload: Workload, seen: dict[str, _Seen]) -> dict[str, Any]:
    peer, bridge = (seen[name].figure() if name in seen else None for name in ("peer", "bridge"))
    speed = (lambda one, other: figures.ratio(other, one)) if workload.lower else figures.ratio

    def beside(name: str) -> dict[str, Any]:
        figure = seen[name].figure()
        return {"ratio": speed(figure, peer), "ratio_to_bridge": speed(figure, bridge), "cpu_s": seen[name].cpu}

    return {
        "name": workload.name,
        "unit": workload.unit,
        "ours": seen["ours"].figure(),
        "peer": peer,
        "bridge": bridge,
        **beside("ours"),
        "fused": {
            name: {"figure": seen[name].figure(), **beside(name)}
            for name in (FusedByNode.name, AllFused.name)
            if name in seen
        },
    }


def show(document: dict[str, Any]) -> None:
    """The same for people."""
    rows = []
    for one in document["runs"]:
        rows.append(
            (one["name"], one["unit"], one["bridge"], one["peer"], one["ours"], one["ratio"], one["ratio_to_bridge"])
        )
        rows += [
            (f"  {name}", one["unit"], None, None, fused["figure"], fused["ratio"], fused["ratio_to_bridge"])
            for name, fused in one["fused"].items()
        ]
    columns = ("workload", "unit", "bridge", "QEMU", "ours", "× QEMU", "× bridge")
    figures.show("proxy (ratios of speed: more is better)", columns, rows, document["findings"])
    services = sorted({name for one in document["runs"] for name in one["cpu_s"]})
    rows = [(one["name"], *(one["cpu_s"].get(service) for service in services)) for one in document["runs"]]
    figures.show("CPU seconds of each service in the last run", ("workload", *services), rows)
    rows = [("resident MB at rest", *(document["idle_rss_mb"].get(service) for service in services))]
    figures.show("memory", ("", *services), rows)
