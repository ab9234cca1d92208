"""Who rests while a link is full, and until when."""

from __future__ import annotations

from lockstep.pressure import STALLED, Pressure


class Shell:
    """Notes who rests."""

    def __init__(self, links: dict[str, tuple[str, ...]]) -> None:
        self.resting: list[str] = []
        self.pressure = Pressure(links, self.resting.append, self.resting.remove)


def test_sources_of_a_full_link_rest_until_it_is_free() -> None:
    shell = Shell({"network": ("ingress", "primary"), "guest": ("primary",), "released": ()})
    shell.pressure.moved("ingress", 0.0)
    assert shell.resting == ["network"]
    shell.pressure.moved("primary", 0.1)
    assert shell.resting == ["network", "guest"]
    shell.pressure.free("primary", 0.2)
    assert shell.resting == ["network"]
    shell.pressure.free("ingress", 0.3)
    assert shell.resting == []


def test_a_full_link_that_moves_goes_on_keeping_its_sources() -> None:
    shell = Shell({"network": ("ingress",)})
    for now in range(10):
        shell.pressure.moved("ingress", now * STALLED)
        shell.pressure.tick(now * STALLED + STALLED * 0.9)
        assert shell.resting == ["network"]
        assert shell.pressure.next_deadline() == (now + 1) * STALLED


def test_nobody_waits_for_a_link_that_has_stalled_until_it_moves_again() -> None:
    shell = Shell({"network": ("ingress",)})
    shell.pressure.moved("ingress", 0.0)
    shell.pressure.tick(STALLED)
    assert shell.resting == []
    assert shell.pressure.next_deadline() is None
    shell.pressure.moved("ingress", 100.0)
    assert shell.resting == ["network"]
    assert shell.pressure.next_deadline() == 100.0 + STALLED


def test_a_stalled_link_does_not_wake_who_waits_for_another() -> None:
    shell = Shell({"network": ("ingress", "primary")})
    shell.pressure.moved("ingress", 0.0)
    shell.pressure.moved("primary", 0.3)
    shell.pressure.tick(STALLED)
    assert shell.resting == ["network"]
    assert shell.pressure.next_deadline() == 0.3 + STALLED


def test_a_link_that_was_never_full_wakes_nobody() -> None:
    shell = Shell({"network": ("ingress",)})
    shell.pressure.free("ingress", 0.0)
    assert shell.resting == []
    assert not shell.pressure.resting("network")
