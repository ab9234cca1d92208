"""The control socket: one msgpack map `{"op": …}` in, one out; and the events a service publishes.

A ROUTER, so that a REQ or a DEALER may ask. Every request is answered: `{"ok": true, …}` or
`{"ok": false, "error": …}`. Garbage is counted, and answered where its sender can be told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import msgpack
import zmq

from lockstep.link.zmq import LINGER, Curve, IpcLock, bind
from lockstep.streams import Event

#: Most bytes of a request; of an answer (the status of many guests) or an event.
MAX_REQUEST = 64 << 10
MAX_ANSWER = 16 << 20

Handler = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class ControlError(Exception):
    """A request that was not answered, or refused; the text says by whom and why."""


class ControlRefused(ControlError):
    """The service answered, and its answer was no."""


def _limited(socket: zmq.Socket[bytes], curve: Curve | None, *, serves: bool, endpoint: str) -> None:
    socket.setsockopt(zmq.LINGER, LINGER if serves else 0)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST if serves else MAX_ANSWER)
    socket.setsockopt(zmq.SNDHWM, 1000)
    if curve is not None and endpoint.startswith("tcp://"):
        socket.curve_secretkey, socket.curve_publickey = curve.secret, curve.public
        if serves:
            socket.curve_server = True
            socket.zap_domain = b"lockstep"
        elif curve.server is not None:
            socket.curve_serverkey = curve.server


class Server:
    """A service's control socket and its event publisher."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        control: str,
        events: str,
        curve: Curve | None = None,
    ) -> None:
        self.counters = {"requests": 0, "refused": 0, "garbage": 0, "events": 0}
        self.socket = context.socket(zmq.ROUTER)
        _limited(self.socket, curve, serves=True, endpoint=control)
        self._publisher = context.socket(zmq.PUB)
        _limited(self._publisher, curve, serves=True, endpoint=events)
        self._locks: list[IpcLock] = []
        try:
            self._locks.append(bind(self.socket, control, "the control socket"))
            self._locks.append(bind(self._publisher, events, "the event socket"))
        except Exception:
            self.close()
            raise

    def serve(self, handler: Handler) -> bool:
        """Answer one waiting request through `handler(op, arguments)`; False if none waits."""
        try:
            parts = self.socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return False
        route, body = parts[:-1], parts[-1]
        self.counters["requests"] += 1
        request = unpacked_map(body)
        if request is None or not isinstance(request.get("op"), str) or len(route) > 2:
            self.counters["garbage"] += 1
            answer: dict[str, Any] = {"ok": False, "error": "a request is one msgpack map with a string `op`"}
        else:
            arguments = {name: value for name, value in request.items() if name != "op"}
            try:
                answer = {"ok": True, **handler(request["op"], arguments)}
            except ControlRefused as error:
                self.counters["refused"] += 1
                answer = {"ok": False, "error": str(error)}
        try:
            self.socket.send_multipart([*route[:2], msgpack.packb(answer)], zmq.DONTWAIT)
        except zmq.ZMQError:
            self.counters["garbage"] += 1  # it asked and left, or never reads
        return True

    def publish(self, event: Event) -> None:
        """Tell whoever watches; nobody is waited for."""
        self.counters["events"] += 1
        try:
            self._publisher.send_multipart([event.name.encode(), msgpack.packb(dict(event.fields))], zmq.DONTWAIT)
        except zmq.Again:
            self.counters["events"] -= 1

    def close(self) -> None:
        """Give the sockets back."""
        self.socket.close()
        self._publisher.close()
        for lock in self._locks:
            lock.close()


class Listener:
    """Hears the events of other services."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoints: Iterable[str], curve: Curve | None = None
    ) -> None:
        self.garbage = 0
        self.sockets = []
        for endpoint in endpoints:
            socket = context.socket(zmq.SUB)
            _limited(socket, curve, serves=False, endpoint=endpoint)
            socket.setsockopt(zmq.RECONNECT_IVL, 50)
            socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(endpoint)
            self.sockets.append(socket)

    def receive(self, socket: zmq.Socket[bytes]) -> list[Event] | None:
        """The next event that waits at one of `sockets`; [] if it was garbage, None if none waits."""
        try:
            parts = socket.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            return None
        fields = unpacked_map(parts[1]) if len(parts) == 2 else None
        if fields is None:
            self.garbage += 1
            return []
        return [Event(parts[0].decode("utf-8", "replace"), fields)]

    def close(self) -> None:
        """Give the sockets back."""
        for socket in self.sockets:
            socket.close()


def unpacked_map(body: bytes) -> dict[str, Any] | None:
    """A msgpack map with string keys, or None for anything else."""
    try:
        value = msgpack.unpackb(body, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return None
    return value


def request(
    endpoint: str, op: str, timeout: float = 2.0, *, curve: Curve | None = None, **arguments: Any
) -> dict[str, Any]:
    """Ask a service; returns its answer without `ok`.

    timeout: seconds. Raises ControlRefused if it says no, ControlError if it says nothing.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        _limited(socket, curve, serves=False, endpoint=endpoint)
        socket.connect(endpoint)
        socket.send(msgpack.packb({"op": op, **arguments}))
        if not socket.poll(round(timeout * 1000)):
            raise ControlError(f"no answer from {endpoint} within {timeout:g} s; is the service running?")
        answer = unpacked_map(socket.recv())
    if answer is None:
        raise ControlError(f"{endpoint} answered something else than a map")
    if answer.pop("ok", None) is not True:
        raise ControlRefused(str(answer.get("error", "refused without a reason")))
    return answer


def request_all(
    endpoints: Mapping[str, str], op: str, timeout: float, **arguments: Any
) -> dict[str, dict[str, Any] | str]:
    """Ask several services of this process's own machine at once, each under a name.

    timeout: seconds for all of them together. Each answer comes without `ok`; why there is none, as text.
    """
    answers: dict[str, dict[str, Any] | str] = {}
    with zmq.Context() as context, ExitStack() as stack:
        poller = zmq.Poller()
        waiting: dict[zmq.Socket[bytes], str] = {}
        for name, endpoint in endpoints.items():
            socket = stack.enter_context(context.socket(zmq.DEALER))
            _limited(socket, None, serves=False, endpoint=endpoint)
            socket.connect(endpoint)
            socket.send(msgpack.packb({"op": op, **arguments}))
            poller.register(socket, zmq.POLLIN)
            waiting[socket] = name
        until = time.monotonic() + timeout
        while waiting and (ready := poller.poll(max(0, round((until - time.monotonic()) * 1000)))):
            for socket, _ in ready:
                poller.unregister(socket)
                answers[waiting.pop(socket)] = _answer_in(socket.recv())
        answers |= dict.fromkeys(waiting.values(), f"no answer within {timeout:g} s")
    return {name: answers[name] for name in endpoints}


def _answer_in(body: bytes) -> dict[str, Any] | str:
    answer = unpacked_map(body)
    if answer is None:
        return "answered something else than a map"
    if answer.pop("ok", None) is not True:
        return str(answer.get("error", "refused without a reason"))
    return answer
