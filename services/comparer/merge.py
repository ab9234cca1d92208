"""The events of a comparer's workers, told as one comparer would tell them."""

from __future__ import annotations

from lockstep.streams import Event

#: The source of the splitter's events; those of the workers are their numbers.
SPLITTER = "splitter"


class Merge:
    """Takes each event of each process, and gives those that are to be published.

    A gap reaches every worker, and is the splitter's to tell. A cut is told once all workers have followed
    it. A checkpoint is asked for once until the next commit. A failover is told by who carried it out.
    """

    def __init__(self, workers: int) -> None:
        self._workers = {str(number) for number in range(workers)}
        #: (epoch, phase) → workers that have yet to follow that cut.
        self._awaited: dict[tuple[object, object], set[str]] = {}
        self._checkpoint_asked = False

    def take(self, source: str, event: Event) -> list[Event]:
        """What is to be published when `source` (a worker's number, or SPLITTER) tells this."""
        if event.name == "gap":
            return [event] if source == SPLITTER else []
        if event.name == "failover":
            return []
        if event.name == "checkpoint_requested":
            asked, self._checkpoint_asked = self._checkpoint_asked, True
            return [] if asked else [event]
        if event.name == "cut":
            place = event.fields.get("epoch"), event.fields.get("phase")
            self._awaited.setdefault(place, set(self._workers)).discard(source)
            return self._followed()
        return [event]

    def lost(self, worker: str) -> list[Event]:
        """A worker is gone: nobody waits for it any more. What is to be published now."""
        for awaited in self._awaited.values():
            awaited.discard(worker)
        return self._followed()

    def _followed(self) -> list[Event]:
        done = [place for place, awaited in self._awaited.items() if not awaited]
        for place in done:
            del self._awaited[place]
            if place[1] == "commit":
                self._checkpoint_asked = False
        return [Event("cut", {"epoch": epoch, "phase": phase}) for epoch, phase in done]
