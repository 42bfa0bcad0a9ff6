"""POST /runs:plan: what would become of a run, without submitting it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service import admission
from service.protocol import Plan
from service.settings import Settings
from service.sizing import memory_per_rank, training_seconds
from service.spec import parse_spec
from tests.conftest import emptied, running_api, wait_until
from tests.images import noise_folder
from tests.service.reading import Reading


def document(**sections: Any) -> dict[str, Any]:
    return {"preset": "demo", "data": {"path": "/data/images"}, "resources": {"ranks_per_node": 2}, **sections}


def planned(api: Reading, **sections: Any) -> Plan:
    return api.client.plan(parse_spec(document(**sections)))


def with_worker(api: Reading) -> None:
    api.poll()
    wait_until(lambda: planned(api).feasible, "the scheduler has seen the worker")


def test_without_workers_nothing_is_feasible_and_the_plan_says_why(api: Reading) -> None:
    """As a submitted run's wait reason would."""
    plan = planned(api)
    assert (plan.feasible, plan.starts_now, plan.placement, plan.position) == (False, False, None, 1)
    assert [reason.token for reason in plan.reasons] == ["no_worker"]


def test_a_run_that_would_start_now_is_told_where(api: Reading) -> None:
    """On so many ranks of these workers."""
    with_worker(api)
    plan = planned(api)
    assert (plan.starts_now, plan.placement, plan.ranks, plan.reasons) == (True, ["w1"], 2, [])


def test_a_run_that_no_worker_can_hold_is_not_feasible(api: Reading) -> None:
    """More ranks on a node than any has; then the most that the specification allows is planned for."""
    with_worker(api)
    plan = planned(api, resources={"ranks_per_node": 4})
    assert (plan.feasible, plan.starts_now, plan.ranks) == (False, False, 4)
    assert [reason.token for reason in plan.reasons] == ["node_too_small"]


def test_a_range_of_ranks_is_planned_as_it_would_be_placed(api: Reading) -> None:
    """The largest shape that is free."""
    with_worker(api)
    plan = planned(api, resources={"ranks_per_node": 4, "min_ranks": 2})
    assert (plan.starts_now, plan.ranks) == (True, 2)


def test_behind_others_the_plan_has_the_position_and_what_would_help(api: Reading) -> None:
    """A run holds the worker, another waits: the third would be second in the queue, and first with a higher priority."""
    api.started()
    waiting = api.submit()
    wait_until(lambda: (wait := api.client.run(waiting.id).wait) and wait.position is not None, "the scheduler has seen the second run")
    plan = planned(api)
    assert (plan.feasible, plan.starts_now, plan.position) == (True, False, 2)
    assert {"busy", "behind_others"} <= {reason.token for reason in plan.reasons}
    assert plan.starts_if
    assert planned(api, priority=50).position == 1


def test_nothing_is_stored(api: Reading) -> None:
    """Neither a run, nor a place in the queue."""
    with_worker(api)
    for _ in range(3):
        planned(api)
    assert api.client.runs().runs == []
    assert api.submit().wait is None or api.submit().wait.position == 1


def test_a_user_without_admin_rights_may_plan_and_a_worker_may_not(http: httpx.Client, user_key: str) -> None:
    """It says no more than a submission would."""
    answer = http.post("/runs:plan", json=document(), headers={"Authorization": f"Bearer {user_key}"})
    assert answer.status_code == 200
    assert http.post("/runs:plan", json=document(), headers={"Authorization": "Bearer mw_none"}).status_code == 401


@pytest.mark.parametrize("wrong", [{"clasifier": {}}, {"schedule": {"epochs": 0}}, {"data": {"path": "relative"}}])
def test_a_wrong_specification_gets_the_errors_of_a_submission(http: httpx.Client, wrong: dict[str, Any]) -> None:
    """Field, value and remedy: the same document, but for the path."""
    plan, submission = (http.post(path, json=document(**wrong)) for path in ("/runs:plan", "/runs"))
    assert plan.status_code == submission.status_code == 422
    assert plan.json()["errors"] == submission.json()["errors"]


def test_yaml_is_taken_and_other_types_are_not(http: httpx.Client) -> None:
    """As with a submission."""
    as_yaml = http.post("/runs:plan", content=yaml.safe_dump(document()), headers={"Content-Type": "application/yaml"})
    assert (as_yaml.status_code, http.post("/runs:plan", content="x", headers={"Content-Type": "text/plain"}).status_code) == (200, 415)


def test_memory_is_of_the_ranks_that_it_would_start_on(api: Reading) -> None:
    """With data.limit in the place of a count of images that are not to be seen from here."""
    with_worker(api)
    limited = {"data": {"path": "/data/images", "limit": 1000}}
    plan = planned(api, **limited)
    assert plan.num_images == 1000
    assert plan.memory == memory_per_rank(parse_spec(document(**limited)), 1000, 2)
    unlimited = planned(api)
    assert (unlimited.num_images, unlimited.memory, unlimited.eta_seconds) == (None, None, None)


def test_the_duration_follows_from_the_throughput_of_a_run_like_it(api: Reading) -> None:
    """Unknown before there was one; another backbone is another throughput."""
    limited = {"data": {"path": "/data/images", "limit": 1000}}
    run = api.started(**limited)
    assert planned(api, **limited).eta_seconds is None
    api.report(run, api.progress(10, images_per_second=80.0))  # of two ranks
    eta = planned(api, **limited).eta_seconds
    assert eta == pytest.approx(training_seconds(parse_spec(document(**limited)), 1000, 2, 40.0))
    assert planned(api, **limited, backbone={"name": "resnet50"}).eta_seconds is None


@pytest.fixture
def seeing(redis_session: str, tmp_path: Path) -> Iterator[Reading]:
    """An API that sees the images."""
    settings = Settings(redis_url=emptied(f"{redis_session}/2"), state_dir=tmp_path, keys_dir=tmp_path / "keys", shared_files=True)
    key_file = tmp_path / "keys" / "admin.key"
    with running_api(settings) as url:
        wait_until(key_file.exists, "the first keys are there")
        reading = Reading(url, key_file.read_text().strip(), tmp_path)
        with reading.client, reading.http:
            yield reading


@pytest.mark.parametrize(("limit", "counted"), [(None, 140), (130, 130), (139, 139), (200, 140)])
def test_images_are_counted_where_they_are_to_be_seen(seeing: Reading, tmp_path: Path, limit: int | None, counted: int) -> None:
    """As many as the run would use."""
    noise_folder(tmp_path / "images", 140)
    data = {"path": str(tmp_path / "images")} | ({"limit": limit} if limit else {})
    assert planned(seeing, data=data).num_images == counted


def test_a_count_that_takes_too_long_is_not_known(seeing: Reading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it would give a memory and a duration that are too small; the limit stands where there is one."""
    noise_folder(tmp_path / "images", 140)
    monkeypatch.setattr(admission, "SCAN_SECONDS", -1.0)
    data = {"path": str(tmp_path / "images")}
    assert [planned(seeing, data=data | more).num_images for more in ({}, {"limit": 130})] == [None, 130]
