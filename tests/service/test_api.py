"""The routes, through a real server on a real Redis, with the client that the worker and the command line use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from api.bodies import MAX_BODY_BYTES, MAX_SPEC_BYTES
from service.client import ApiClient
from service.errors import ApiProblem, AttemptLost, LogGap
from service.protocol import EventBatch
from tests.service.documents import WORKER, checkpointed, document, evaluated, progress, report, spec, started


@pytest.fixture
def client(api_url: str) -> Iterator[ApiClient]:
    with ApiClient(api_url, retries=0) as connected:
        yield connected


def test_a_run_goes_from_submission_to_its_end(client: ApiClient) -> None:
    """Every route that a run's life needs, in order."""
    run = client.submit(spec())
    assert run.status == "queued"
    claim = client.claim("w1", WORKER)
    assert claim is not None
    assert (claim.run_id, claim.attempt, claim.spec) == (run.id, 1, spec())
    assert client.heartbeat(run.id, 1).command == "continue"
    batch = EventBatch(events=[started(), evaluated(2, 0, 74.7), progress(3, 10), checkpointed(4, 10)])
    assert client.events(run.id, 1, batch).last_seq == 4
    assert client.put_log(run.id, 1, "rank-0.log", 0, b"step 10\n").size == 8
    assert client.run(run.id).status == "running"
    assert client.workers()[0].run == run.id
    assert client.exit(run.id, 1, report("finished", "all 50 steps done")).status == "succeeded"
    assert client.runs(status="succeeded").runs[0].reason == "all 50 steps done"
    assert [entry.event for entry in client.history(run.id)] == ["submit", "claim", "started", "finished"]
    assert [metric.metric.kind for metric in client.metrics(run.id).metrics] == ["evaluated", "progress"]
    assert [checkpoint.step for checkpoint in client.checkpoints(run.id)] == [10]
    assert client.log(run.id) == (b"step 10\n", 8)
    assert [(log.attempt, log.name, log.size) for log in client.log_index(run.id)] == [(1, "rank-0.log", 8)]
    assert client.claim("w1", WORKER) is None
    client.ready()


def test_submission_answers_with_the_place_of_the_run(http: httpx.Client) -> None:
    """201, Location, and the specification with its preset and defaults filled in."""
    answer = http.post("/runs", json=document())
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/runs/{answer.json()['id']}"
    assert http.get(answer.headers["location"]).json() == answer.json()
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


def test_cancel_is_accepted_again_and_refused_after_another_end(client: ApiClient, http: httpx.Client) -> None:
    """202, 202; 409 with the status once the run has succeeded."""
    run, done = client.submit(spec()), client.submit(spec())
    assert [http.post(f"/runs/{run.id}/cancel").status_code for _ in range(2)] == [202, 202]
    client.claim("w1", WORKER)
    client.exit(done.id, 1, report("finished"))
    refusal = http.post(f"/runs/{done.id}/cancel")
    assert (refusal.status_code, refusal.json()["code"]) == (409, "transition_refused")
    assert "is succeeded" in refusal.json()["detail"]


def test_a_lost_attempt_is_told_who_holds_the_run(client: ApiClient, http: httpx.Client) -> None:
    """409 with the current attempt and the run's status; its logs are still taken."""
    run = client.submit(spec())
    client.claim("w1", WORKER)
    client.claim("w1", WORKER)
    refusal = http.post(f"/runs/{run.id}/attempts/1/heartbeat")
    assert refusal.status_code == 409
    problem = refusal.json()
    assert (problem["code"], problem["current_attempt"], problem["run_status"]) == ("attempt_lost", 2, "starting")
    with pytest.raises(AttemptLost):
        client.exit(run.id, 1, report("finished"))
    assert client.put_log(run.id, 1, "rank-0.log", 0, b"late").size == 4
    with pytest.raises(AttemptLost):
        client.put_log(run.id, 3, "rank-0.log", 0, b"early")


def test_a_gap_in_the_events_is_told_with_what_is_due(client: ApiClient, http: httpx.Client) -> None:
    """409 event_gap with last_seq."""
    run = client.submit(spec())
    client.claim("w1", WORKER)
    refusal = http.post(f"/runs/{run.id}/attempts/1/events", json={"events": [progress(2, 10)]})
    assert (refusal.status_code, refusal.json()["code"], refusal.json()["last_seq"]) == (409, "event_gap", 0)


def test_logs_skip_what_is_stored_and_refuse_a_gap(client: ApiClient) -> None:
    """A piece that overlaps adds only its new part; one beyond the end is refused with the size."""
    run = client.submit(spec())
    client.claim("w1", WORKER)
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


@pytest.mark.parametrize("name", ["..%2F..%2Fetc", "rank-0.log%2F..", "rank-0.txt", "rank-00000.log"])
def test_a_log_has_one_of_the_known_names(client: ApiClient, http: httpx.Client, name: str) -> None:
    """No other name reaches the disk."""
    run = client.submit(spec())
    client.claim("w1", WORKER)
    assert http.put(f"/runs/{run.id}/attempts/1/logs/{name}?offset=0", content=b"x").status_code in (404, 422)
    assert client.log_index(run.id) == []


def test_the_logs_of_a_run_that_has_none_yet_are_empty(client: ApiClient) -> None:
    """So that a follower can begin before the worker does."""
    run = client.submit(spec())
    assert client.log(run.id) == (b"", 0)
    assert client.log_index(run.id) == []


JSON, YAML = {"Content-Type": "application/json"}, {"Content-Type": "application/yaml"}
EVENT_NAN = b'{"events": [{"kind": "phase", "phase": "indexing", "seq": 1, "time": NaN}]}'

WRONG_REQUESTS: list[tuple[str, str, dict[str, Any], int, str, str]] = [
    ("GET", "/runs/nothing", {}, 404, "run_not_found", "no run 'nothing'"),
    ("GET", "/runs/nothing/logs", {}, 404, "run_not_found", "GET /runs"),
    ("GET", "/nothing", {}, 404, "not_found", "nothing at /nothing"),
    ("DELETE", "/workers", {}, 405, "method_not_allowed", "/workers does not take DELETE: use GET"),
    ("GET", "/runs?status=done", {}, 422, "invalid_request", "'succeeded'"),
    ("GET", "/runs?limit=0", {}, 422, "invalid_request", "limit: '0'"),
    ("GET", "/runs?cursor=x", {}, 422, "invalid_request", "cursor: 'x'"),
    ("POST", "/workers/w1/claim", {"json": {"slots": 2}}, 422, "invalid_request", "host: Field required"),
    ("POST", "/workers/w1/claim", {"content": b"{", "headers": JSON}, 422, "invalid_request", "the body is not JSON at byte 1"),
    ("POST", "/runs/x/attempts/1/events", {"json": {"events": [{"kind": "phase"}]}}, 422, "invalid_request", "seq"),
    (
        "GET",
        "/runs?state=failed",
        {},
        422,
        "invalid_request",
        "state: 'failed': unknown query parameter: known here: cursor, limit, status",
    ),
    ("GET", "/runs/x?status=failed", {}, 422, "invalid_request", "this route takes none"),
    ("GET", "/runs/x/logs?atempt=1", {}, 422, "invalid_request", "known here: attempt, limit, name, offset"),
    ("POST", "/workers/w1/claim", {"content": b'{"host": "\\ud800"}', "headers": JSON}, 422, "invalid_request", "host: '\\ud800'"),
    ("POST", "/runs/x/attempts/1/events", {"content": EVENT_NAN, "headers": JSON}, 422, "invalid_request", "time"),
    ("POST", "/runs", {"content": b"\xff", "headers": JSON}, 422, "invalid_spec", "not UTF-8 at byte 0"),
    ("POST", "/runs", {"content": b"[" * 100_000, "headers": JSON}, 422, "invalid_spec", "nested too deeply"),
    ("POST", "/runs", {"content": b"[" * 100_000, "headers": YAML}, 422, "invalid_spec", "nested too deeply"),
    ("POST", "/runs", {"content": b"- " * 100_000, "headers": YAML}, 422, "invalid_spec", "nested too deeply"),
    ("POST", "/runs", {"content": b"a: " * 1000, "headers": YAML}, 422, "invalid_spec", "at line 1"),
    ("POST", "/runs", {"content": b" " * (MAX_SPEC_BYTES + 1), "headers": JSON}, 413, "body_too_large", "larger than 262144 bytes"),
    ("PUT", "/runs/x/attempts/1/logs/rank-0.log?offset=0", {"content": b" " * (MAX_BODY_BYTES + 1)}, 404, "run_not_found", "no run"),
    ("POST", "/runs", {"content": b"name: 2026-02-30", "headers": YAML}, 422, "invalid_spec", "put it in quotes"),
    ("POST", "/runs", {"content": b"seed: " + b"1" * 5000, "headers": YAML}, 422, "invalid_spec", "put it in quotes"),
    ("POST", "/runs", {"content": b"seed: 0x" + b"f" * 5000, "headers": YAML}, 422, "invalid_spec", "seed: a int too large to show"),
    ("POST", "/runs", {"content": b"seed: !!timestamp x", "headers": YAML}, 422, "invalid_spec", "put it in quotes"),
    ("POST", "/runs", {"content": b"seed: !!bool x", "headers": YAML}, 422, "invalid_spec", "put it in quotes"),
    ("POST", "/runs", {"content": b'{"seed": ' + b"1" * 5000 + b"}", "headers": JSON}, 422, "invalid_spec", "a number that cannot be read"),
    ("POST", "/runs", {"content": b'{"seed": ' + b"1" * 4000 + b"}", "headers": JSON}, 422, "invalid_spec", "seed: 111"),
    ("POST", "/runs", {"content": b'{"seed": NaN}', "headers": JSON}, 422, "invalid_spec", "seed: nan"),
    ("POST", "/runs", {"content": b'{"name": "\\ud800"}', "headers": JSON}, 422, "invalid_spec", "name: '\\ud800'"),
    ("POST", "/runs", {"content": b'name: "\\ud800"', "headers": YAML}, 422, "invalid_spec", "name: '\\ud800'"),
    ("POST", "/runs", {"content": b'{"\\ud800": 1}', "headers": JSON}, 422, "invalid_spec", "'\\ud800': input should be a valid string"),
    ("POST", "/runs", {"content": b'{"backbone": {"args": {"a": "\\ud800"}}}', "headers": JSON}, 422, "invalid_spec", "backbone.args"),
    ("POST", "/runs", {"content": b'{"backbone": {"args": {"a": [NaN]}}}', "headers": JSON}, 422, "invalid_spec", "backbone.args"),
    ("POST", "/runs", {"content": b"backbone: {args: {a: 0x" + b"f" * 5000 + b"}}", "headers": YAML}, 422, "invalid_spec", "backbone.args"),
    ("POST", "/runs", {"content": b'{"data": ' + b'{"a":' * 900 + b"1" + b"}" * 901, "headers": JSON}, 422, "invalid_spec", "data.a"),
    ("POST", "/runs", {"content": b"[a]: 1", "headers": YAML}, 422, "invalid_spec", "at line 1"),
    ("POST", "/runs", {"content": b"1: 1", "headers": YAML}, 422, "invalid_spec", "1"),
    ("POST", "/runs", {"content": b"a: &x 1\nb: *x", "headers": YAML}, 422, "invalid_spec", "aliases"),
    ("POST", "/runs", {"content": b"a: [1", "headers": YAML}, 422, "invalid_spec", "at line 1"),
]


@pytest.mark.parametrize(("method", "path", "request_", "status", "code", "fragment"), WRONG_REQUESTS)
def test_every_refusal_is_a_problem_document(
    http: httpx.Client, method: str, path: str, request_: dict[str, Any], status: int, code: str, fragment: str
) -> None:
    """RFC 9457: its media type and members, a stable code, and words that say what to do."""
    answer = http.request(method, path, **request_)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert fragment in problem["detail"]
    assert {"type", "title", "errors"} <= problem.keys()


def test_a_submission_that_is_refused_names_each_field(http: httpx.Client) -> None:
    """All mistakes at once, each with field, pointer, value and message."""
    answer = http.post("/runs", json=document(seed="x", classifier={"temprature": 0.1}))
    found = {error["field"]: error for error in answer.json()["errors"]}
    assert found["seed"]["value"] == "x"
    assert found["classifier.temprature"]["pointer"] == "/classifier/temprature"
    assert "did you mean 'temperature'?" in found["classifier.temprature"]["message"]


def test_a_refusal_reads_the_same_through_the_client(client: ApiClient) -> None:
    """The command line shows what the API says."""
    with pytest.raises(ApiProblem, match="set it to 1"):
        client.submit(spec(nodes=2))


def test_the_openapi_document_holds_the_specification_and_the_problems(http: httpx.Client) -> None:
    """The body of POST /runs is RunSpec, with its descriptions and bounds; refusals are problem documents."""
    found = http.get("/openapi.json").json()
    submit = found["paths"]["/runs"]["post"]
    assert submit["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/RunSpec"}
    assert {"201", "413", "415", "422"} <= submit["responses"].keys()
    assert "Location" in submit["responses"]["201"]["headers"]
    schemas = found["components"]["schemas"]
    assert set(schemas["RunSpec"]["required"]) == {"data", "schedule"}
    temperature = schemas["Classifier"]["properties"]["temperature"]
    assert (temperature["minimum"], temperature["default"]) == (0.03, 0.15)
    assert temperature["description"].startswith("tau")
    assert {"Problem", "FieldProblem"} <= schemas.keys()
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
    references = set(json.dumps(found).split('"#/components/schemas/')[1:])
    assert {reference.split('"')[0] for reference in references} <= schemas.keys()
