"""Records by key: a table like a dictionary, with a bound."""

from __future__ import annotations

import ipaddress

from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.flow.records import Records


def key(number: int, *, v6: bool, vlan: tuple[int, ...] = ()) -> bytes:
    """A key of TCP, laid out as `lockstep.flow.key` says; numbers differ in ports and addresses."""
    ends = [int(ipaddress.ip_address("fd77::1" if v6 else "10.0.0.1")) + (number >> 4), 0x0A000002 + (number & 3)]
    addresses = b"".join(end.to_bytes(16 if v6 else 4, "big") for end in ends)
    tags = b"".join(vid.to_bytes(2, "big") for vid in vlan)
    return bytes((len(vlan), 6 if v6 else 4, 6)) + tags + addresses + (number * 40503 & 0xFFFFFFFF).to_bytes(4, "big")


KEYS = st.builds(key, st.integers(0, 200), v6=st.booleans(), vlan=st.lists(st.integers(0, 4095), max_size=2).map(tuple))


@given(st.lists(st.tuples(st.sampled_from(["claim", "claim", "find", "forget"]), KEYS), max_size=200))
@settings(max_examples=200)
def test_it_is_a_dictionary_with_a_bound(steps: list[tuple[str, bytes]]) -> None:
    records, model = Records(40), {}
    for step, wanted in steps:
        found = records.find_key(wanted)
        assert found == model.get(wanted, 0)
        if found:
            assert records.key(found) == wanted
        if step == "claim" and not found:
            record = records.claim_key(wanted)
            assert bool(record) == (len(model) < 40)
            if record:
                assert record not in model.values()
                model[wanted] = record
        elif step == "forget" and found:
            records.forget(model.pop(wanted))
        assert records.used == len(model)


def test_a_key_with_more_tags_than_a_record_has_room_for_has_none() -> None:
    records = Records(16)
    assert records.claim_key(key(1, v6=False, vlan=(1, 2, 3))) == 0
    assert records.find_key(key(1, v6=False, vlan=(1, 2, 3))) == 0
