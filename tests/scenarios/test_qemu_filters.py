"""Our services beside QEMU's own COLO filters, in the place of some of them: 100 MB arrive whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenarios.qemu_filters import MixedStage
from scenarios.traffic import Transfer, assert_protected

pytestmark = [pytest.mark.root, pytest.mark.needs("qemu-system-x86_64"), pytest.mark.timeout(180)]

SIZE = 100_000_000


def test_our_comparer_is_fed_by_the_filters_of_two_qemus(tmp_path: Path) -> None:
    """filter-mirror and filter-redirector on the primary, filter-redirector and filter-rewriter on the secondary."""
    links = {"primary": ("compare0", True), "secondary": ("compare1", True), "released": ("out", False)}
    with (
        MixedStage(("comparer",), ("primary", "secondary"), links, tmp_path) as stage,
        Transfer(stage, size=SIZE) as it,
    ):
        it.finish()
        counted = assert_protected(stage)
        assert counted["secondary_frames"] > 1000
        links_counted = stage.status("comparer")["links"]
        assert [links_counted[name]["connections"] for name in links] == [1, 1, 1]


def test_our_mirror_and_comparer_work_with_a_secondary_of_qemus(tmp_path: Path) -> None:
    links = {"ingress": ("mirror0", True), "secondary": ("compare1", True)}
    with MixedStage(("comparer", "mirror"), ("secondary",), links, tmp_path) as stage, Transfer(stage, size=SIZE) as it:
        it.finish()
        assert_protected(stage)


def test_our_redirector_and_rewriter_serve_qemus_comparer(tmp_path: Path) -> None:
    links = {"ingress": ("mirror0", False), "secondary": ("compare1", False)}
    services = ("redirector", "rewriter")
    with MixedStage(services, ("primary",), links, tmp_path, compares=True) as stage, Transfer(stage, size=SIZE) as it:
        it.finish()
        assert stage.status("rewriter")["counters"]["learned"] > 0
