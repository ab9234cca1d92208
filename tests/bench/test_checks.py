"""The check of what came out finds what is missing, foreign or out of order."""

from bench.checks import differences
from bench.traffic import Traffic

TRAFFIC = Traffic.make(flows=2, payload=10, frames=8)
FRAMES = TRAFFIC.split(TRAFFIC.measured)


def test_the_same_frames_are_fine():
    assert differences(FRAMES, list(FRAMES)) == []


def test_another_order_between_flows_is_fine():
    swapped = [each for pair in zip(FRAMES[1::2], FRAMES[::2], strict=True) for each in pair]
    assert differences(FRAMES, swapped) == []


def test_order_within_a_flow_counts():
    assert differences(FRAMES, [FRAMES[2], FRAMES[1], FRAMES[0], *FRAMES[3:]]) == [
        "1 frames left behind a later one of their flow"
    ]


def test_a_missing_frame_is_found():
    assert differences(FRAMES, FRAMES[:3] + FRAMES[4:]) == ["1 of 8 frames never came out"]


def test_a_changed_frame_is_missing_and_foreign():
    changed = FRAMES[0][:-1] + bytes((FRAMES[0][-1] ^ 1,))
    assert differences(FRAMES, [changed, *FRAMES[1:]]) == [
        "1 of 8 frames never came out",
        "1 frames came out that did not go in",
    ]


def test_a_frame_that_came_twice_is_foreign_once():
    assert differences(FRAMES, [FRAMES[0], *FRAMES]) == ["1 frames came out that did not go in"]
