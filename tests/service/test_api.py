"""The routes, through a real server on a real Redis, with the client that the worker and the command line use."""

from __future__ import annotations

import json

import httpx
import pytest
import yaml

from service.errors import ApiProblem, AttemptLost, LogGap
from service.protocol import EventBatch
from tests.service.documents import document
from tests.service.reading import Reading


def test_a_run_goes_from_submission_to_its_end(api: Reading) -> None:
    """Every route that a run's life needs, in order."""
    run = api.submit()
    assert run.status == "queued"
    api.take()
    assert (api.client.run(run.id).status, api.client.workers()[0].holds[0].run_id) == ("starting", run.id)
    started = api.event("started", num_images=100, num_steps=50, start_step=0, world_size=2, device="cpu")
    evaluated = api.event("evaluated", step=0, epoch=0.0, knn=74.7, knn_pixels=None)
    api.report(run, started, evaluated, api.progress(10), api.checkpointed(10))
    assert api.client.put_log(run.id, 1, "rank-0.log", 0, b"step 10\n").size == 8
    assert api.client.run(run.id).status == "running"
    api.end(run, reason="all 50 steps done")
    assert api.client.runs(status="succeeded").runs[0].reason == "all 50 steps done"
    assert [entry.event for entry in api.client.history(run.id)] == ["submit", "place", "started", "finished"]
    assert [attempt.outcome for attempt in api.client.attempts(run.id)] == ["finished"]
    assert api.client.metrics(run.id).series["loss"][0].last == 4.5
    assert [checkpoint.step for checkpoint in api.client.checkpoints(run.id)] == [10]
    assert api.client.log(run.id) == (b"step 10\n", 8)
    assert [(log.attempt, log.name, log.size) for log in api.client.log_index(run.id)] == [(1, "rank-0.log", 8)]
    assert api.poll() == []
    api.client.ready()


def test_submission_answers_with_the_place_of_the_run(http: httpx.Client) -> None:
    """201, Location, and the specification with its preset and defaults filled in."""
    answer = http.post("/runs", json=document())
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/runs/{answer.json()['id']}"
    why_it_waits = {"wait": None, "reason": ""}
    assert {**http.get(answer.headers["location"]).json(), **why_it_waits} == answer.json()
    assert answer.json()["spec"]["classifier"]["temperature"] == 0.15


def test_a_specification_is_taken_as_yaml_too(http: httpx.Client) -> None:
    """By its content type, with or without parameters."""
    as_yaml = http.post("/runs", content=yaml.safe_dump(document()), headers={"Content-Type": "application/yaml"})
    as_json = http.post("/runs", content=json.dumps(document()), headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert (as_yaml.status_code, as_json.status_code) == (201, 201)
    assert as_yaml.json()["spec"] == as_json.json()["spec"]


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_any_web_page_can_send_is_refused(http: httpx.Client, content_type: str | None) -> None:
    """A browser posts these types to a loopback address without asking it first."""
    headers = {"Content-Type": content_type} if content_type else {}
    answer = http.post("/runs", content=json.dumps(document()), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "send application/json or application/yaml" in answer.json()["detail"]
    assert http.get("/runs").json()["runs"] == []


def test_an_idempotency_key_makes_a_repeated_submission_the_same_run(http: httpx.Client) -> None:
    """201 again with the same run; 422 for another body."""
    first, again = (http.post("/runs", json=document(), headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    other = http.post("/runs", json=document(seed=1), headers={"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_cancel_is_accepted_again_and_refused_after_another_end(api: Reading) -> None:
    """202, 202; 409 with the status once the run has succeeded."""
    done = api.started()
    api.end(done)
    run = api.submit()
    assert [api.http.post(f"/runs/{run.id}/cancel").status_code for _ in range(2)] == [202, 202]
    refusal = api.http.post(f"/runs/{done.id}/cancel")
    assert (refusal.status_code, refusal.json()["code"]) == (409, "transition_refused")
    assert "is succeeded" in refusal.json()["detail"]


def test_a_lost_attempt_is_told_who_holds_the_run(api: Reading) -> None:
    """409 with the current attempt and the run's status; its logs are still taken, those of an attempt to come are not."""
    run = api.started()
    api.client.cancel(run.id)
    api.end(run, "stopped")
    refusal = api.http.post(
        f"/runs/{run.id}/attempts/1/events", json={"events": [{"kind": "phase", "phase": "prior", "seq": 9, "time": 1.0}]}
    )
    problem = refusal.json()
    assert (refusal.status_code, problem["code"], problem["current_attempt"]) == (409, "attempt_lost", 1)
    assert problem["run_status"] == "cancelled"
    with pytest.raises(AttemptLost):
        api.client.events(run.id, 2, EventBatch(events=[api.progress(10)]))
    assert api.client.put_log(run.id, 1, "rank-0.log", 0, b"late").size == 4
    with pytest.raises(AttemptLost):
        api.client.put_log(run.id, 2, "rank-0.log", 0, b"early")


def test_a_gap_in_the_events_is_told_with_what_is_due(api: Reading) -> None:
    """409 event_gap with last_seq."""
    run = api.started()
    refusal = api.http.post(f"/runs/{run.id}/attempts/1/events", json={"events": [{**api.progress(10), "seq": 7}]})
    assert (refusal.status_code, refusal.json()["code"], refusal.json()["last_seq"]) == (409, "event_gap", 1)


def test_logs_skip_what_is_stored_and_refuse_a_gap(api: Reading) -> None:
    """A piece that overlaps adds only its new part; one beyond the end is refused with the size."""
    run, client = api.started(), api.client
    assert client.put_log(run.id, 1, "rank-0.log", 0, b"0123456789").size == 10
    assert client.put_log(run.id, 1, "rank-0.log", 6, b"6789abc").size == 13
    assert client.put_log(run.id, 1, "rank-0.log", 2, b"234").size == 13
    with pytest.raises(LogGap) as refusal:
        client.put_log(run.id, 1, "rank-0.log", 20, b"xyz")
    assert refusal.value.size == 13
    assert client.log(run.id, offset=4, limit=6) == (b"456789", 10)
    assert client.log(run.id, offset=10) == (b"abc", 13)
    assert client.log(run.id, offset=13) == (b"", 13)
    assert client.log(run.id, offset=1 << 62) == (b"", 1 << 62)


def test_the_logs_of_a_run_that_has_none_yet_are_empty(api: Reading) -> None:
    """So that a follower can begin before the worker does."""
    run = api.submit()
    assert api.client.log(run.id) == (b"", 0)
    assert api.client.log_index(run.id) == []


def test_a_submission_that_is_refused_names_each_field(http: httpx.Client) -> None:
    """All mistakes at once, each with field, pointer, value and message."""
    answer = http.post("/runs", json=document(seed="x", classifier={"temprature": 0.1}))
    found = {error["field"]: error for error in answer.json()["errors"]}
    assert found["seed"]["value"] == "x"
    assert found["classifier.temprature"]["pointer"] == "/classifier/temprature"
    assert "did you mean 'temperature'?" in found["classifier.temprature"]["message"]


def test_a_refusal_reads_the_same_through_the_client(api: Reading) -> None:
    """The command line shows what the API says."""
    with pytest.raises(ApiProblem, match="architecture known here: did you mean"):
        api.submit(backbone={"name": "resnet8"})
