"""What is refused, and the OpenAPI document that says so."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.auth import OPEN
from api.bodies import MAX_BODY_BYTES, MAX_SPEC_BYTES
from api.problems import KIND_OF_CODE
from service.settings import Settings

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
    ("POST", "/workers/w1/poll", {"json": {"slots": 2}}, 422, "invalid_request", "incarnation: Field required"),
    ("POST", "/workers/w1/poll", {"content": b"{", "headers": JSON}, 422, "invalid_request", "the body is not JSON at byte 1"),
    ("POST", "/runs/x/attempts/1/events", {"json": {"events": [{"kind": "phase"}]}}, 422, "invalid_request", "seq"),
    (
        "GET",
        "/runs?state=failed",
        {},
        422,
        "invalid_request",
        "state: 'failed': unknown query parameter: known here: cursor",
    ),
    ("GET", "/runs/x?status=failed", {}, 422, "invalid_request", "known here: timeout, wait_for_version"),
    ("GET", "/runs/x/logs?atempt=1", {}, 422, "invalid_request", "known here: attempt, follow, limit, name, offset"),
    ("POST", "/workers/w1/poll", {"content": b'{"host": "\\ud800"}', "headers": JSON}, 422, "invalid_request", "host: '\\ud800'"),
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


OWN_PROBLEMS = {
    "POST /runs": {"invalid_spec", "idempotency_conflict", "queue_full", "unsupported_media_type"},
    "POST /runs:plan": {"invalid_spec", "unsupported_media_type"},
    "GET /runs": set(),
    "GET /runs/{run_id}": set(),
    "PATCH /runs/{run_id}": {"edit_conflict"},
    "POST /runs/{run_id}/cancel": {"transition_refused"},
    "POST /runs/{run_id}/kill": {"transition_refused"},
    "POST /runs/{run_id}/pause": {"transition_refused"},
    "POST /runs/{run_id}/resume": {"transition_refused"},
    "POST /runs/{run_id}/fork": {"checkpoint_not_found", "invalid_spec", "idempotency_conflict", "queue_full"},
    "GET /runs/{run_id}/history": set(),
    "GET /runs/{run_id}/attempts": set(),
    "GET /runs/{run_id}/events": set(),
    "GET /runs/{run_id}/metrics": set(),
    "GET /runs/{run_id}/logs": set(),
    "GET /runs/{run_id}/logs/index": set(),
    "GET /runs/{run_id}/checkpoints": set(),
    "PUT /runs/{run_id}/checkpoints/{step}/pin": {"checkpoint_not_found"},
    "DELETE /runs/{run_id}/checkpoints/{step}/pin": {"checkpoint_not_found"},
    "GET /runs/{run_id}/checkpoints/{step}/files": {"checkpoint_not_found", "files_not_here"},
    "GET /runs/{run_id}/checkpoints/{step}/files/{name}": {"checkpoint_not_found", "files_not_here", "range_not_satisfiable"},
    "GET /runs/{run_id}/export": {"files_not_here"},
    "GET /runs/{run_id}/export/{name}": {"files_not_here", "range_not_satisfiable"},
    "GET /workers": set(),
    "POST /workers/{worker}/poll": {"worker_name_taken", "worker_replaced"},
    "POST /workers/{worker}/drain": {"worker_not_found"},
    "DELETE /workers/{worker}/drain": {"worker_not_found"},
    "POST /runs/{run_id}/attempts/{attempt}/events": {"attempt_lost", "event_gap"},
    "PUT /runs/{run_id}/attempts/{attempt}/logs/{name}": {"attempt_lost", "log_gap", "disk_full"},
    "POST /runs/{run_id}/attempts/{attempt}/exit": {"attempt_lost"},
}
EVERYWHERE = {"uri_too_long", "headers_too_large", "rate_limited", "internal_error"}


def test_every_problem_that_a_route_can_answer_with_is_documented() -> None:
    """Its own, those of its run, key, body and store, and no others; each under its status, and with its words."""
    paths = create_app(Settings()).openapi()["paths"]
    found = {f"{method.upper()} {path}": operation for path, methods in paths.items() for method, operation in methods.items()}
    assert found.keys() - {f"GET {path}" for path in OPEN} == OWN_PROBLEMS.keys()
    for route, own in OWN_PROBLEMS.items():
        expected = own | EVERYWHERE | {"unauthenticated", "forbidden", "store_unavailable", "invalid_request"}
        expected |= {"run_not_found"} if "{run_id}" in route else set()
        expected |= {"body_too_large", "body_too_slow"} if "requestBody" in found[route] else set()
        codes = {code for answer in found[route]["responses"].values() for code in answer.get("x-codes", ())}
        assert codes == expected, route
    for operation in found.values():
        for status, answer in operation["responses"].items():
            for code in answer.get("x-codes", ()):
                assert KIND_OF_CODE[code].status == int(status)
                assert f"`{code}`" in answer["description"]


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
