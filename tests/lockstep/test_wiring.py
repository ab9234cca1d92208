"""The table of what is joined to what: it is the picture of docs/design.md, and nothing hangs loose in it."""

from __future__ import annotations

from collections import Counter
from typing import get_args

from lockstep import wiring
from lockstep.config import Node, Service, Stream
from lockstep.streams import STREAMS
from lockstep.wiring import LOCAL, SERVICES


def test_every_stream_is_given_by_one_service_and_taken_by_one() -> None:
    assert Counter(stream for wiring in SERVICES.values() for stream in wiring.gives) == Counter(STREAMS)
    assert Counter(stream for wiring in SERVICES.values() for stream in wiring.takes) == Counter(STREAMS)


def test_the_streams_go_as_in_the_picture() -> None:
    ways = {
        stream: (giver, taker)
        for giver, given in SERVICES.items()
        for taker, taken in SERVICES.items()
        for stream in set(given.gives) & set(taken.takes)
    }
    assert ways == {
        "ingress": ("mirror", "redirector"),
        "to_guest": ("redirector", "rewriter"),
        "from_guest": ("rewriter", "redirector"),
        "primary": ("mirror", "comparer"),
        "secondary": ("redirector", "comparer"),
        "released": ("comparer", "mirror"),
    }


def test_the_ports_are_as_in_the_picture() -> None:
    assert {name: wiring.ports for name, wiring in SERVICES.items()} == {
        "mirror": ("network", "guest"),
        "redirector": ("uplink",),
        "rewriter": ("guest",),
        "comparer": (),
    }


def test_local_streams_are_those_between_the_secondary_nodes_services() -> None:
    assert set(LOCAL) == {"to_guest", "from_guest"}


def test_a_configuration_can_name_every_service_and_every_stream() -> None:
    assert set(get_args(Service)) == set(SERVICES)
    assert set(get_args(Stream)) == set(STREAMS)


def test_who_is_heard_exists() -> None:
    assert {other for wiring in SERVICES.values() for other in wiring.hears} <= set(SERVICES)


def test_every_source_that_can_fill_a_link_rests_for_it() -> None:
    """Which these are is told by the cores' own pictures: what each source can be turned into."""
    assert {name: dict(wiring.rests) for name, wiring in SERVICES.items()} == {
        "mirror": {"network": ("ingress", "primary"), "guest": ("primary",)},
        "redirector": {"ingress": ("to_guest", "secondary"), "uplink": ("to_guest",), "from_guest": ("secondary",)},
        "rewriter": {"to_guest": ("from_guest",), "guest": ("from_guest",)},
        "comparer": {"primary": ("released",), "secondary": ("released",)},
    }


def test_no_link_waits_for_itself() -> None:
    """A full link keeps its producer's sources waiting; those that are links then fill, and so on."""
    takers = {stream: wiring for wiring in SERVICES.values() for stream in wiring.takes}

    def waits_for(stream: str, seen: tuple[str, ...] = ()) -> None:
        assert stream not in seen, f"{' waits for '.join((*seen, stream))}"
        for link in takers[stream].rests.get(stream, ()):
            waits_for(link, (*seen, stream))

    for stream in STREAMS:
        waits_for(stream)


def test_in_digest_mode_digests_take_the_place_of_the_secondary() -> None:
    node = Node.model_validate({"redirector": {"secondary": "digest"}, "comparer": {"secondary": "digest"}})
    redirector, comparer = wiring.of(node, "redirector"), wiring.of(node, "comparer")
    assert (redirector.gives, comparer.takes) == (("to_guest", "digests"), ("primary", "digests"))
    assert redirector.rests["from_guest"] == ("digests",)
    assert comparer.rests["digests"] == ("released",)
    assert wiring.of(node, "mirror") is wiring.SERVICES["mirror"]


def test_each_guest_has_a_released_of_its_own_and_each_worker_its_share() -> None:
    guests = [{"name": name, "released": f"ipc:///r/{name}"} for name in ("a", "b")]
    node = Node.model_validate({"guests": guests})
    assert wiring.of(node, "comparer").gives == ("released@a", "released@b")
    splitter = wiring.of_splitter(2)
    assert splitter.takes == ("released@0", "released@1", "primary", "secondary")
    assert splitter.gives == ("released", "primary@0", "primary@1", "secondary@0", "secondary@1")
    assert splitter.rests["primary"] == ("primary@0", "primary@1")
    assert splitter.rests["released@1"] == ("released",)
    digests = wiring.of_splitter(2, "digests")
    assert digests.takes == ("released@0", "released@1", "primary", "digests")
    assert digests.gives == ("released", "primary@0", "primary@1", "digests@0", "digests@1")
    assert digests.rests["digests"] == ("digests@0", "digests@1")
    several = Node.model_validate({"guests": guests, "comparer": {"secondary": "digest"}})
    assert wiring.of(several, "comparer").takes == ("primary", "digests")
    assert wiring.of(several, "comparer").gives == ("released@a", "released@b")
