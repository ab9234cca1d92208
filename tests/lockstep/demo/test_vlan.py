"""The two programs that tag and untag where the kernel has no 8021q. `test_devices` sees their work on the wire."""

from __future__ import annotations

import ipaddress
import os
import platform
import struct

import pytest

from lockstep.demo import vlan

TAG = vlan._tag(77, ipaddress.IPv4Interface("10.78.0.1/24"))
UNTAG = vlan._untag(77)

EXIT, CALL, JUMPS = 0x95, 0x85, {0x05, 0x15, 0x55, 0x56}


@pytest.mark.parametrize("program", [TAG, UNTAG])
def test_every_way_out_of_a_program_sets_its_answer_first(program: bytes) -> None:
    instructions = list(struct.iter_unpack("<BBhI", program))
    end = len(instructions) - 2
    assert instructions[end:] == [(0xB7, 0, 0, 0), (EXIT, 0, 0, 0)]
    targets = {index + 1 + jump for index, (code, _, jump, _) in enumerate(instructions) if code in JUMPS}
    assert max(targets) == end
    (call,) = (index for index, (code, *_) in enumerate(instructions) if code == CALL)
    assert call + 1 == end
    assert call not in targets, "a jump to the call would skip its arguments"


@pytest.mark.root
@pytest.mark.parametrize("program", [TAG, UNTAG])
def test_the_kernels_verifier_takes_it(program: bytes) -> None:
    try:
        os.close(vlan._load(program))
    except PermissionError as error:
        if error.errno != 1:  # EPERM is for us; EACCES is the verifier's no
            raise
        pytest.skip("bpf(2) is not permitted here")


def test_an_unknown_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(OSError, match="vax"):
        vlan._load(UNTAG)
