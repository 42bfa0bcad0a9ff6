"""The curves of a run, against what an oracle makes of every report."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.event_effects import read_event
from service.protocol import MetricPoint
from service.series import curves
from service.store import Store
from tests.service.reading import Reading

Report = tuple[int, float]


def within(points: Iterable[MetricPoint], reports: list[Report]) -> None:
    """Each point says what the reports between its steps say, and no report is outside of all points."""
    counted = 0
    for point in points:
        values = [value for step, value in reports if point.first_step <= step <= point.last_step]
        assert (point.minimum, point.maximum, point.last) == (min(values), max(values), values[-1])
        assert point.mean == pytest.approx(sum(values) / len(values), rel=1e-9)
        counted += len(values)
    assert counted == len(reports)


def curve(api: Reading, run_id: str, name: str = "loss", points: int = 500) -> list[MetricPoint]:
    return api.client.metrics(run_id, points=points).series.get(name, [])


def test_a_short_run_keeps_every_report(api: Reading) -> None:
    """Below 512 steps each report is a point of its own; series that were never reported are not there."""
    run = api.started()
    reports = [(step, 5.0 - step / 100) for step in range(10, 500, 10)]
    api.report(run, *(api.progress(step, loss=loss) for step, loss in reports))
    series = api.client.metrics(run.id).series
    assert [(point.first_step, point.last_step, point.mean) for point in series["loss"]] == [(s, s, pytest.approx(v)) for s, v in reports]
    assert set(series) == {"loss", "learning_rate", "images_per_second", "data_wait"}
    assert set(api.client.metrics(run.id, series=["knn", "loss"]).series) == {"loss"}


def test_five_million_steps_fit_into_a_small_answer_that_hides_nothing(api: Reading) -> None:
    """Minimum, maximum, mean and last of every bucket are those of the reports in it, spikes of one report included."""
    random.seed(0)
    steps = list(range(1000, 5_000_001, 1000))
    reports = [(step, float(f"{7 * math.exp(-step / 1e6) + random.gauss(0, 0.01):.7g}")) for step in steps]
    reports[1234] = (reports[1234][0], 1e9)
    reports[4321] = (reports[4321][0], -1e9)
    run = api.started()
    api.report(run, *(api.progress(step, loss=loss) for step, loss in reports), api.event("evaluated", step=5_000_000, epoch=9, knn=77.5))
    for points in (1, 7, 100, 500, 1000):
        answer = api.http.get(f"/runs/{run.id}/metrics", params={"points": points})
        assert len(answer.content) < 250_000
        found = curve(api, run.id, points=points)
        assert min(points, 500) / 2 < len(found) <= points
        within(found, reports)
        assert (min(point.minimum for point in found), max(point.maximum for point in found)) == (-1e9, 1e9)
    assert [(point.first_step, point.mean) for point in curve(api, run.id, "knn")] == [(5_000_000, 77.5)]


def test_a_resumed_attempt_counts_no_step_twice(api: Reading) -> None:
    """It reports the steps after its checkpoint again, with the same values: the curve is that of a run that was never interrupted."""
    run = api.started()
    reports = [(step, float(f"{math.sin(step):.7g}")) for step in range(10, 30_001, 10)]
    api.report(run, *(api.progress(step, loss=loss) for step, loss in reports if step <= 20_000))
    api.end(run, "crashed", "the node went away")
    api.take()
    api.report(run, api.event("started", num_images=100, num_steps=50, start_step=12_345, world_size=2, device="cpu"))
    cut = curve(api, run.id)
    assert cut[-1].last_step <= 12_345 + 64  # buckets have 64 steps by then
    api.report(run, *(api.progress(step, loss=loss) for step, loss in reports if step > 12_345))
    within(curve(api, run.id), reports)


def test_numbers_at_the_edge_of_what_a_number_can_be(api: Reading) -> None:
    """Their sum would be infinite, which JSON has no word for: they are kept at 1e300, and what follows is not lost."""
    run = api.started()
    api.report(run, *(api.progress(1000 + step, loss=1.7e308) for step in range(3)), api.progress(1003, loss=-1.7e308), api.progress(2000))
    found = curve(api, run.id, points=1)
    assert (found[0].maximum, found[0].minimum) == (1e300, -1e300)
    assert math.isfinite(found[0].mean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_never_gets_into_a_curve(value: float) -> None:
    """Such a report becomes a warning, before it comes to the store."""
    document = {"kind": "evaluated", "seq": 1, "time": 1.0, "step": 1, "epoch": 1, "knn": value}
    assert read_event(document).kind == "warned"


@pytest.mark.parametrize(
    ("query", "field"), [("points=0", "points"), ("points=1001", "points"), ("series=los", "series.0"), ("point=1", "point")]
)
def test_what_is_no_question_is_refused(api: Reading, query: str, field: str) -> None:
    """422 with the parameter's name."""
    run = api.submit()
    answer = api.http.get(f"/runs/{run.id}/metrics?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)


async def test_a_long_runs_curves_take_little_memory(store: Store, api: Reading) -> None:
    """What 5 million steps leave in Redis is bounded, so that ten thousand stored runs fit."""
    run = api.started()
    api.report(
        run, *(api.progress(step, loss=1 / step, learning_rate=step / 7, data_wait=1 / (step + 1)) for step in range(1500, 3_000_000, 1500))
    )
    database = store.redis.connection_pool.connection_kwargs
    async with Store.connect(f"redis://127.0.0.1:{database['port']}/2", lease_seconds=60) as other:
        used = await other.redis.memory_usage(f"millionway:series:{run.id}", samples=0)
    assert used < 250_000


buckets = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), min_size=1, max_size=60)


@given(buckets, st.integers(1, 70))
def test_joining_buckets_loses_no_report(values: list[list[float]], points: int) -> None:
    """However many points are asked for."""
    stored, reports, step = [], [], 0
    for bucket in values:
        steps = list(range(step, step + len(bucket)))
        stored.append({"loss": [steps[0], steps[-1], min(bucket), max(bucket), sum(bucket), len(bucket), bucket[-1]]})
        reports += list(zip(steps, bucket, strict=True))
        step += len(bucket)
    found = curves(stored, None, points)["loss"]
    assert len(found) <= points
    for point in found:
        inside = [value for at, value in reports if point.first_step <= at <= point.last_step]
        assert (point.minimum, point.maximum, point.last) == (min(inside), max(inside), inside[-1])
        assert point.mean == pytest.approx(sum(inside) / len(inside), abs=1e-6)
