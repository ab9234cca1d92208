"""`python -m bench guest`: what is made of what was seen. The rigs themselves are tried by `tests/vm`."""

import pytest

from bench import guest
from bench.vm.rig import Bare, Filters, Rig, Services


def seen(**values: float | None) -> dict[str, dict[str, list[float]]]:
    return {name: {"ping": [] if value is None else [value]} for name, value in values.items()}


def test_a_ratio_is_one_of_speed_whatever_the_unit():
    assert guest._result("ping", "ms", seen(tap=1.0, filters=2.0, ours=4.0))["ratio"] == 0.5
    assert guest._result("ping", "MB/s", seen(tap=1.0, filters=2.0, ours=4.0))["ratio_to_tap"] == 4.0


def test_what_stalled_has_no_figure_and_no_ratio(capsys: pytest.CaptureFixture[str]):
    result = guest._result("ping", "ms", seen(tap=1.0, filters=None, ours=4.0))
    assert (result["filters"], result["ratio"], result["ratio_to_tap"]) == (None, None, 0.25)
    guest.show({"runs": [result], "findings": ["ping, run 1, filters: stalled after 0.3 MB"]})
    assert "stalled after 0.3 MB" in capsys.readouterr().out


class Client(Rig):
    """What the client sees, made up."""

    def __init__(self, lines: list[str], digest: str, size: int) -> None:
        self.mebibytes, self._seen = 1, (lines, digest, size)

    def ping(self, count: int, interval: float = 0.2):
        return iter(self._seen[0])

    def download(self, limit: float) -> tuple[str, int]:
        return self._seen[1:]


def test_a_download_counts_only_whole_and_right():
    assert guest._download(Client([], "d", 1 << 19), "d") == "stalled after 0.5 MB"
    assert guest._download(Client([], "e", 1 << 20), "d") == "the bytes are wrong"
    assert guest._download(Client([], "d", 1 << 20), "d") > 0


def test_the_median_of_the_pings_counts_if_all_were_answered():
    lines = [f"64 bytes from 10.77.0.2: icmp_seq={n} ttl=64 time={n}.5 ms\n" for n in range(200)]
    assert guest._ping(Client(lines, "", 0)) == 100.0
    assert guest._ping(Client(lines[:190], "", 0)) == "10 of 200 pings were not answered"


def test_each_stands_for_itself(tmp_path):
    assert [type(make(tmp_path, 1)) for make in guest.RIGS.values()] == [Bare, Filters, Services]
