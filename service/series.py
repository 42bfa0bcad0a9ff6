"""The curves of a run, as store_metrics.lua keeps them, for a plot of so many points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from service.protocol import MetricPoint

SeriesName = Literal["loss", "learning_rate", "images_per_second", "data_wait", "knn"]


class Bucket(NamedTuple):
    """The reports of one series within some steps."""

    first_step: int
    last_step: int
    minimum: float
    maximum: float
    total: float
    num_reports: int
    last: float


def curves(buckets: Sequence[Mapping[str, Sequence[float]]], names: Sequence[str] | None, points: int) -> dict[str, list[MetricPoint]]:
    """Neighbouring buckets joined, in order of their steps, until at most `points` are left of each series."""
    by_name: dict[str, list[Bucket]] = {}
    for bucket in buckets:
        for name, numbers in bucket.items():
            if names is None or name in names:
                by_name.setdefault(name, []).append(Bucket._make(numbers))
    joined: dict[str, list[MetricPoint]] = {}
    for name, found in by_name.items():
        each = -(-len(found) // points)
        joined[name] = [_point(found[start : start + each]) for start in range(0, len(found), each)]
    return joined


def _point(buckets: Sequence[Bucket]) -> MetricPoint:
    return MetricPoint(
        first_step=buckets[0].first_step,
        last_step=buckets[-1].last_step,
        minimum=min(bucket.minimum for bucket in buckets),
        maximum=max(bucket.maximum for bucket in buckets),
        mean=sum(bucket.total for bucket in buckets) / sum(bucket.num_reports for bucket in buckets),
        last=buckets[-1].last,
    )
