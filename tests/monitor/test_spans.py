import pytest

from percent_ray.monitor.spans import overlap
from percent_ray.types import Span


def test_share_of_the_time_in_which_two_stages_work():
    spans = [Span("sample", "a", 100, 104), Span("perceive", "b", 103, 106)]
    spans.append(Span("update", "c", 106, 110))
    assert overlap(spans) == pytest.approx(0.1)


def test_two_workers_of_one_stage_do_not_overlap():
    assert overlap([Span("sample", "a", 0, 4), Span("sample", "b", 1, 5)]) == 0


def test_a_stage_that_begins_as_another_ends_does_not_overlap():
    assert overlap([Span("sample", "a", 0, 4), Span("update", "b", 4, 5)]) == 0


def test_nested_spans():
    spans = [Span("sample", "a", 0, 10), Span("sample", "b", 2, 4), Span("update", "c", 3, 8)]
    assert overlap(spans) == pytest.approx(0.5)


def test_nothing_overlaps_in_nothing():
    assert overlap([]) == 0
    assert overlap([Span("sample", "a", 1, 1)]) == 0
