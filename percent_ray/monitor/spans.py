"""What of a run's work happened at the same time."""

from collections.abc import Sequence

from percent_ray.types import Span


def overlap(spans: Sequence[Span]) -> float:
    """Share of the time between the first start and the last stop in which at least two *stages*
    were at work. Two workers of one stage are not an overlap. 0 without spans."""
    if not spans:
        return 0.0
    events = sorted(
        [(span.start, 1, span.stage) for span in spans]
        + [(span.stop, -1, span.stage) for span in spans]
    )
    working: dict[str, int] = {}
    shared, before = 0.0, events[0][0]
    for now, change, stage in events:
        if sum(count > 0 for count in working.values()) > 1:
            shared += now - before
        working[stage] = working.get(stage, 0) + change
        before = now
    whole = events[-1][0] - events[0][0]
    return shared / whole if whole else 0.0
