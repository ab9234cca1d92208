"""Medians and ratios as they are shown."""

from bench import figures


def test_a_median_keeps_four_digits():
    assert figures.median([1.0, 123456.0, 7.0]) == 7.0
    assert figures.median([123456.0]) == 123500.0


def test_a_ratio_to_nothing_is_none():
    assert figures.ratio(10.0, 4.0) == 2.5
    assert figures.ratio(10.0, 0.0) is None
    assert figures.ratio(10.0, None) is None
