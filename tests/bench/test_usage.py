"""What a process used, read from outside, agrees with what it says itself."""

import os
import resource
import time

import pytest

from bench import usage


def test_cpu_time_is_what_the_process_itself_reads():
    before = time.process_time()
    seen = usage.cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()


def test_peak_memory_is_what_getrusage_says():
    said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert usage.peak_rss_mb(os.getpid()) == pytest.approx(said, rel=0.05)
    assert usage.rss_mb(os.getpid()) <= usage.peak_rss_mb(os.getpid())
