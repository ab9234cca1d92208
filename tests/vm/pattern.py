"""What a client must have got."""

from __future__ import annotations

import hashlib

from bench.vm.image import pattern
from bench.vm.rig import Services


def downloaded(rig: Services) -> None:
    """The client gets the pattern whole, and the comparer saw all of it without a divergence."""
    wanted = hashlib.sha256()
    for block in pattern(rig.mebibytes):
        wanted.update(block)
    digest, size = rig.download(200.0)
    assert size == rig.mebibytes << 20
    assert digest == wanted.hexdigest()
    comparer = rig.status("comparer")["counters"]
    assert comparer["divergences"] == 0
    assert comparer["released"] > rig.mebibytes << 20 >> 16, "what arrived wasn't compared"
