"""A comparer of several processes, and the one control surface in front of them.

    this process: control and events of the comparer        comparer.control, comparer.events
    splitter:     the node's three links                    primary, secondary, released
    worker 0 …:   the comparer of its share of the flows    primary@0, secondary@0, released@0 …

No frame passes through this process. It starts the others, asks them all and answers for them, tells
their events as one comparer would (`services/comparer/merge.py`), and starts one that ends again.

A worker that ends takes with it what it held and what it knew. Nothing of that is ever released: the
guests' TCP sends again, and the new worker picks connections up in their middle, as a comparer does that
was restarted. The others go on; where divergences ask for a checkpoint, so does this.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import structlog
import zmq

from lockstep import config as configuration
from lockstep import exits
from lockstep.children import die_with_parent
from lockstep.config import Node
from lockstep.control import ControlRefused, Listener, Server, request_all
from lockstep.link import curve as keys
from lockstep.link.zmq import Curve
from lockstep.log import RateLimit
from lockstep.report.recorder import Recorder
from lockstep.streams import Event
from services.comparer.merge import SPLITTER, Merge

#: Seconds that all processes together have for an answer, and to be there after a start.
PATIENCE = 1.0
START = 20.0
#: Seconds between two starts of one process.
PAUSE = 1.0
#: Events taken of one process before the others get their turn.
MOST_EVENTS = 64

log = structlog.get_logger()


class Child:
    """One process: a worker, or the splitter. `started`: monotonic seconds."""

    def __init__(self, name: str, argv: list[str]) -> None:
        self.name = name
        self._argv = argv
        self.restarts = -1
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again."""
        parent = os.getpid()
        self.process = subprocess.Popen(
            [*self._argv, "--worker", self.name], preexec_fn=lambda: die_with_parent(parent), start_new_session=True
        )
        self.descriptor = os.pidfd_open(self.process.pid)
        self.started = time.monotonic()
        self.restarts += 1

    def end(self) -> int:
        """Wait for its end, which was asked for or has come; returns its exit code."""
        code = self.process.wait()
        os.close(self.descriptor)
        return code


class Workers:
    """The processes of a comparer with `comparer.workers` over 1, as long as `run` runs."""

    def __init__(self, node: Node, path: Path | None, capture: str | None) -> None:
        self._node, self._path, self._capture = node, path, capture
        self._names = [str(number) for number in range(node.comparer.workers)]
        self._started = time.monotonic()
        self._merge = Merge(node.comparer.workers)
        self._children: dict[str, Child] = {}
        #: Processes that ended and are due to be started again: name → when.
        self._due: dict[str, float] = {}
        #: Workers whose secondary is lost, as their events say in order: a new one has to be told.
        self._alone: set[str] = set()
        self._stopping = False
        self._allowed = RateLimit(20)
        self._recorder: Recorder | None = None

    def run(self) -> int:
        """Start everything, answer until told to stop, end everything; returns the exit code."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._stop())
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        with ExitStack() as stack:
            stack.callback(self._end_all)
            code = self._start_all()
            if code is not None:
                return code
            self._open(stack)
            self._poller.register(reader, zmq.POLLIN)
            log.info("workers_started", workers=len(self._names))
            while not self._stopping:
                self._step()
        return exits.OK

    def _stop(self) -> None:
        self._stopping = True

    # --- processes

    def _start_all(self) -> int | None:
        """The exit code of the first that ended before all were there; None once they are."""
        argv = [sys.executable, "-P", "-m", "services.comparer"]
        argv += ["-c", str(self._path)] if self._path else []
        argv += ["--capture", self._capture] if self._capture else []
        for name in (*self._names, SPLITTER):
            self._children[name] = Child(name, argv)
        until = time.monotonic() + START
        while not self._stopping:
            ended = [code for child in self._children.values() if (code := child.process.poll()) is not None]
            if ended:
                return ended[0] if ended[0] > 0 else exits.SOFTWARE
            if not any(isinstance(answer, str) for answer in self._ask("status", 0.2).values()):
                return None
            if time.monotonic() > until:
                return exits.UNAVAILABLE
        return exits.OK

    def _end_all(self) -> None:
        running = [child for child in self._children.values() if child.name not in self._due]
        for child in running:
            child.process.terminate()
        for child in running:
            child.end()

    def _lost(self, child: Child, now: float) -> None:
        """A process has ended, though nobody asked for it."""
        self._poller.unregister(child.descriptor)
        code = child.end()
        self._due[child.name] = max(now, child.started + PAUSE)
        self._publish(Event("worker_lost", {"worker": child.name, "code": code, "restarts": child.restarts}), now)
        if self._node.comparer.on_divergence == "checkpoint":
            asked = Event("checkpoint_requested", {"reason": "worker"})
            self._publish_all(self._merge.take(child.name, asked), now)
        self._publish_all(self._merge.lost(child.name), now)

    def _restart(self, name: str) -> None:
        del self._due[name]
        child = self._children[name]
        child.start()
        self._poller.register(child.descriptor, zmq.POLLIN)
        if self._alone and name != SPLITTER:
            # It waits in the socket until the worker is there.
            self._ask("failover", START, only=(name,))

    # --- sockets

    def _open(self, stack: ExitStack) -> None:
        node = self._node
        context = stack.enter_context(zmq.Context())
        curve: Curve | None = None
        if node.security.secret_key is not None:
            curve = keys.load(node.security.secret_key)
            allowed = keys.AllowList(context, (*node.security.peers, curve.public.decode()))
            stack.callback(allowed.close)
        if node.comparer.capture_dir is not None:
            comparer = node.comparer
            self._recorder = Recorder(node.comparer.capture_dir, comparer.capture_files, comparer.capture_bytes)
            stack.callback(self._recorder.close)
        self._server = Server(context, node.control_endpoint("comparer"), node.events_endpoint("comparer"), curve)
        stack.callback(self._server.close)
        self._listeners: dict[str, Listener] = {}
        self._poller = zmq.Poller()
        self._poller.register(self._server.socket, zmq.POLLIN)
        for name, child in self._children.items():
            listener = Listener(context, [node.of_worker(name).events_endpoint("comparer")])
            stack.callback(listener.close)
            self._listeners[name] = listener
            self._poller.register(listener.sockets[0], zmq.POLLIN)
            self._poller.register(child.descriptor, zmq.POLLIN)

    def _step(self) -> None:
        due = min(self._due.values(), default=None)
        wait = None if due is None else max(0, round((due - time.monotonic()) * 1000) + 1)
        ready = {source for source, _ in self._poller.poll(wait)}
        now = time.monotonic()
        for name, child in self._children.items():
            if self._listeners[name].sockets[0] in ready:
                self._hear(name, now)
            if name not in self._due and child.descriptor in ready:
                self._lost(child, now)
        if self._server.socket in ready:
            self._server.serve(lambda op, arguments: self._command(op, arguments, now))
        for name in [name for name, when in self._due.items() if when <= now]:
            self._restart(name)

    # --- events

    def _hear(self, name: str, now: float) -> None:
        listener = self._listeners[name]
        for _ in range(MOST_EVENTS):
            events = listener.receive(listener.sockets[0])
            if events is None:
                return
            for event in events:
                if event.name == "failover":
                    self._alone.add(name)
                elif event.name == "cut" and event.fields.get("phase") == "commit":
                    self._alone.discard(name)
                self._publish_all(self._merge.take(name, event), now)

    def _publish_all(self, events: list[Event], now: float) -> None:
        for event in events:
            self._publish(event, now)

    def _publish(self, event: Event, now: float) -> None:
        self._server.publish(event)
        if self._recorder is not None and event.name == "divergence":
            self._recorder.take(event.fields, now)
        if self._allowed.allows(now) and event.name in ("worker_lost", "failover"):
            log.info("event_published", name=event.name, **event.fields)

    # --- control

    def _ask(self, op: str, timeout: float, only: tuple[str, ...] | None = None, **arguments: Any) -> dict[str, Any]:
        """Each process's answer, or why there is none, as text."""
        names = only or (*self._names, SPLITTER) if op == "status" else only or tuple(self._names)
        endpoints = {name: self._node.of_worker(name).control_endpoint("comparer") for name in names}
        return request_all(endpoints, op, timeout, **arguments)

    def _command(self, op: str, arguments: Mapping[str, Any], now: float) -> dict[str, Any]:
        if op == "drain":
            self._stop()
            return {"stopping": True}
        if op == "status":
            return self._status(now)
        if op == "reload":
            self._reload()
        elif op == "failover":
            self._alone.update(self._names)
        answers = self._ask(op, PATIENCE, **arguments)
        refused = [f"worker {name}: {answer}" for name, answer in answers.items() if isinstance(answer, str)]
        if refused:
            raise ControlRefused("; ".join(refused))
        answer: dict[str, Any] = next(iter(answers.values()))
        if op == "failover":
            answer["epoch"] = max(said["epoch"] for said in answers.values())
            self._publish(Event("failover", answer), now)
        return answer

    def _reload(self) -> None:
        if self._path is None:
            raise ControlRefused("this process was not started from a file, so there is nothing to read again")
        try:
            self._node = configuration.load(self._path, services=("comparer",), capture=self._capture)
        except configuration.ConfigError as error:
            raise ControlRefused(str(error)) from error

    def _status(self, now: float) -> dict[str, Any]:
        """One comparer's status: the workers' sums, the splitter's links, and each process."""
        answers = self._ask("status", PATIENCE)
        splitter = answers.pop(SPLITTER)
        said = [answer for answer in answers.values() if not isinstance(answer, str)]
        counters: dict[str, int] = {}
        for answer in (*said, *([] if isinstance(splitter, str) else [{"counters": _dropped(splitter)}])):
            for name, count in answer["counters"].items():
                counters[name] = counters.get(name, 0) + count
        gauges = ("held", "kept_bytes", "flows", "half_open")
        return {
            "service": "comparer",
            "node": self._node.node,
            "pid": os.getpid(),
            "fused": [],
            "epoch": min((answer["epoch"] for answer in said), default=0),
            "uptime_s": round(now - self._started, 3),
            "counters": counters,
            "links": {} if isinstance(splitter, str) else splitter["links"],
            "ports": {},
            "control": self._server.counters,
            **{name: sum(answer[name] for answer in said) for name in gauges},
            "on_divergence": self._node.comparer.on_divergence,
            "divergences": [divergence for answer in said for divergence in answer["divergences"]],
            "workers": {name: self._told(name, answer) for name, answer in (*answers.items(), (SPLITTER, splitter))},
            **({"reports": self._recorder.counters} if self._recorder else {}),
        }

    def _told(self, name: str, answer: dict[str, Any] | str) -> dict[str, Any]:
        child = self._children[name]
        told: dict[str, Any] = {"pid": child.process.pid, "restarts": child.restarts}
        if isinstance(answer, str):
            return {**told, "error": answer}
        counters = {counter: count for counter, count in answer["counters"].items() if count}
        return {**told, "epoch": answer["epoch"], "uptime_s": answer["uptime_s"], "counters": counters}


def _dropped(splitter: dict[str, Any]) -> dict[str, int]:
    """Frames that never came to a worker, or were lost behind it."""
    return {name: count for name, count in splitter["counters"].items() if name.startswith("dropped_")}
