"""Hostile requests and what each is answered: status, code, and words of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from api.bodies import MAX_BODY_BYTES, MAX_SPEC_BYTES
from tests.conftest import bearer

JSON, YAML = {"Content-Type": "application/json"}, {"Content-Type": "application/yaml"}
STREAM = {"Accept": "text/event-stream"}
LOG = "/runs/{own}/logs"
PUT_LOG = "/runs/{own}/attempts/1/logs"
FILE = "/runs/{own}/checkpoints/10/files/model.safetensors"
ROOT = "/data"
"""What stands for the folder of `Ground` in documents and messages."""


@dataclass(frozen=True)
class Hostile:
    title: str
    method: str
    path: str
    status: int
    code: str | None
    """None: the answer is no problem document."""
    fragment: str = ""
    """Of the answer."""
    body: Any = None
    """JSON, or bytes as they are."""
    headers: Mapping[str, str | bytes] = field(default_factory=dict)
    by: Literal["alice", "admin", "worker", "nobody"] = "alice"
    after: Hostile | None = None
    """What was sent before."""


def spec(**sections: Any) -> dict[str, Any]:
    """Correct, with the images of `Ground`."""
    base = {"data": {"path": f"{ROOT}/images", "image_size": 32}, "backbone": {"name": "resnet18"}, "optimizer": {"global_batch_size": 8}}
    return {**base, "classifier": {"hardest_k": 5}, "schedule": {"epochs": 10}, **sections}


def submit(title: str, fragment: str, *, path: str = "/runs", **sections: Any) -> Hostile:
    """A specification that is wrong."""
    return Hostile(title, "POST", path, 422, "invalid_spec", fragment, spec(**sections))


def raw(title: str, fragment: str, body: bytes, headers: Mapping[str, str] = JSON) -> Hostile:
    """A body that is no specification."""
    return Hostile(title, "POST", "/runs", 422, "invalid_spec", fragment, body, headers)


def labelled(path: str) -> dict[str, Any]:
    return {"evaluation": {"labelled": f"{ROOT}/images", "queries": path}}


FIRST = Hostile("a submission", "POST", "/runs", 201, None, body=spec(), headers={"Idempotency-Key": "k"})
EVENT = {"kind": "phase", "phase": "indexing", "seq": 1, "time": 1.0}
POLL = {"incarnation": "0123456789abcdef", "host": "h", "address": "a", "slots": 1, "device": "cpu", "storage": "s", "number": 1}

PATHS = [
    submit("data outside the allowed folders", "it leads out of /data", data={"path": "/etc"}),
    submit("data that climbs out with ..", "it leads out of /data", data={"path": f"{ROOT}/images/../../etc"}),
    submit("data behind a symbolic link to elsewhere", "it leads out of /data", data={"path": f"{ROOT}/escape"}),
    submit("data below a link that climbs", "it leads out of /data", data={"path": f"{ROOT}/escape/../images"}),
    submit("a neighbour whose name begins like an allowed folder", "it leads out of /data", data={"path": f"{ROOT}-private"}),
    submit("whether a foreign folder exists", "it leads out of /data", data={"path": "/root/.ssh"}),
    submit("a zero byte in a path", "it leads out of /data", data={"path": f"{ROOT}/images\0/etc"}),
    submit("a file URL for a path", "give the absolute path", data={"path": "file:///etc"}),
    submit("queries outside the allowed folders", "evaluation.queries is '/etc'", **labelled("/etc")),
    submit("an escape in a dry run", "it leads out of /data", path="/runs:plan", data={"path": "/etc"}),
    submit(
        "weights to unpickle from a path", "no foreign weights are loaded", backbone={"name": "resnet18", "args": {"checkpoint_path": "/x"}}
    ),
    submit("an architecture that is a path", "no timm architecture", backbone={"name": "local-dir:/data/evil"}),
    Hostile("a log's name that climbs", "GET", f"{LOG}?name=../../../etc/passwd", 422, "invalid_request", "name"),
    Hostile("a log's name that climbs, encoded", "GET", f"{LOG}?name=..%2F..%2Fadmin.key", 422, "invalid_request", "name"),
    Hostile("a log's name with a line break", "GET", f"{LOG}?name=rank-0.log%0A", 422, "invalid_request", "name"),
    Hostile("a log written where it should not be", "PUT", f"{PUT_LOG}/..%2F..%2Fx.log?offset=0", 404, "not_found", "", b"x", by="worker"),
    Hostile("a log of another name", "PUT", f"{PUT_LOG}/rank-0.txt?offset=0", 422, "invalid_request", "name", b"x", by="worker"),
    Hostile("a run's id that climbs", "GET", "/runs/..%2F..%2Fetc%2Fpasswd/logs", 404, "not_found"),
    Hostile("a run's id of dots", "GET", "/runs/%2E%2E/logs", 404, "run_not_found"),
    Hostile("a file's name that climbs", "GET", "/runs/{own}/checkpoints/10/files/..%2F..%2F..%2Fspec.json", 404, "not_found"),
    Hostile(
        "a file that is a link to elsewhere", "GET", "/runs/{own}/checkpoints/10/files/escape", 404, "files_not_here", "no file 'escape'"
    ),
    Hostile("a worker's name that climbs", "POST", "/workers/..%2Fapi/poll", 404, "not_found", "", POLL, by="worker"),
]
BODIES = [
    raw("half a surrogate pair", "name: '\\ud800'", b'{"name": "\\ud800"}'),
    raw("bytes that are no UTF-8", "not UTF-8 at byte 0", b"\xff\xfe"),
    raw("NaN for a number", "seed: nan", b'{"seed": NaN}'),
    raw("infinity for a number", "finite number", b'{"optimizer": {"learning_rate": Infinity}}'),
    raw("a number of 5,000 digits", "a number that cannot be read", b'{"seed": ' + b"1" * 5000 + b"}"),
    raw("a key twice", "twice", b'{"seed": 1, "seed": 2}'),
    raw("a key twice, in YAML", "twice", b"seed: 1\nseed: 2\n", YAML),
    raw("100,000 brackets", "nested too deeply", b"[" * 100_000),
    raw("100,000 brackets, in YAML", "nested too deeply", b"[" * 100_000, YAML),
    raw("a billion laughs", "aliases", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", YAML),
    raw("a YAML tag that calls Python", "at line 1", b"name: !!python/object/apply:os.system [id]", YAML),
    raw("several YAML documents", "at line", b"seed: 1\n---\nseed: 2\n", YAML),
    raw("a list for a mapping", "this is a list", b"[1, 2]"),
    raw("nothing", "not JSON at line 1", b""),
    submit("a mapping for a number", "seed", seed={"$gt": 0}),
    submit("an unknown key", "__proto__", __proto__={"role": "admin"}),
    submit("an owner of one's choice", "unknown key 'owner'", owner="admin"),
    submit("control characters in a name", "name", name="a\r\nSet-Cookie: x"),
    submit("a label with control characters", "labels", labels={"a": "\x1b[2J"}),
    submit("a number out of all bounds", "ranks_per_node", resources={"ranks_per_node": 10**18}),
    submit("a negative number", "priority", priority=-(10**9)),
    Hostile("a specification of more than 256 KiB", "POST", "/runs", 413, "body_too_large", "262144", b" " * (MAX_SPEC_BYTES + 1), JSON),
    Hostile(
        "a log of more than 4 MiB at once",
        "PUT",
        f"{PUT_LOG}/rank-0.log?offset=0",
        413,
        "body_too_large",
        "4194304",
        b"x" * (MAX_BODY_BYTES + 1),
        by="worker",
    ),
    Hostile(
        "a form, as any web page can send it",
        "POST",
        "/runs",
        415,
        "unsupported_media_type",
        "",
        b"a=b",
        {"Content-Type": "application/x-www-form-urlencoded"},
    ),
    Hostile("no content type", "POST", "/runs", 415, "unsupported_media_type", "is missing", b"{}"),
    Hostile(
        "events of the wrong type", "POST", "/runs/{own}/attempts/1/events", 422, "invalid_request", "", {"events": "all"}, by="worker"
    ),
    Hostile(
        "NaN in an event",
        "POST",
        "/runs/{own}/attempts/1/events",
        422,
        "invalid_request",
        "time",
        b'{"events": [{"kind": "phase", "phase": "indexing", "seq": 1, "time": NaN}]}',
        JSON,
        by="worker",
    ),
    Hostile(
        "a thousand and one events",
        "POST",
        "/runs/{own}/attempts/1/events",
        422,
        "invalid_request",
        "1000",
        {"events": [EVENT] * 1001},
        by="worker",
    ),
    Hostile("a report in no text at all", "POST", "/workers/w2/poll", 422, "invalid_request", "UTF-8", b"\xff", JSON, by="worker"),
    Hostile("a report nested without end", "POST", "/workers/w2/poll", 422, "invalid_request", "", b"[" * 100_000, JSON, by="worker"),
    Hostile("a change of what a run did", "PATCH", "/runs/{own}", 422, "invalid_request", "status", {"status": "succeeded"}),
    Hostile("a priority of false", "PATCH", "/runs/{own}", 422, "invalid_request", "priority is false", {"priority": False}),
]
PEOPLE = [
    Hostile("no key", "GET", "/runs", 401, "unauthenticated", "carries no key", by="nobody"),
    Hostile("a guessed key", "GET", "/runs", 401, "unauthenticated", "not known", headers=bearer("mw_" + "A" * 43), by="nobody"),
    Hostile("a key in the query", "GET", "/runs?key={key}", 401, "unauthenticated", by="nobody"),
    Hostile("a key that is no ASCII", "GET", "/runs", 401, "unauthenticated", headers={"Authorization": b"Bearer \xff\xfe"}, by="nobody"),
    Hostile("two keys", "GET", "/runs", 401, "unauthenticated", headers=bearer("a b"), by="nobody"),
    Hostile("another's run", "GET", "/runs/{foreign}", 404, "run_not_found"),
    Hostile("cancelling another's run", "POST", "/runs/{foreign}/cancel", 404, "run_not_found"),
    Hostile("a fork of another's run", "POST", "/runs/{foreign}/fork", 404, "run_not_found", body={}),
    Hostile("another's runs in a list", "GET", "/runs?owner=admin", 403, "forbidden", "an admin's key"),
    Hostile("a user's report of an attempt", "POST", "/runs/{own}/attempts/1/exit", 403, "forbidden", body={}),
    Hostile("a user who takes a worker away", "POST", "/workers/w1/drain", 403, "forbidden", body={}),
    Hostile("a worker that reads runs", "GET", "/runs", 403, "forbidden", by="worker"),
    Hostile(
        "a worker that takes another's name",
        "POST",
        "/workers/w1/poll",
        409,
        "worker_name_taken",
        body={**POLL, "host": "evil", "incarnation": "f" * 16},
        by="worker",
    ),
    Hostile(
        "a report of an attempt to come",
        "POST",
        "/runs/{own}/attempts/9/exit",
        409,
        "attempt_lost",
        body={"worker": "w1", "outcome": "finished", "reason": ""},
        by="worker",
    ),
    Hostile(
        "a report of another's attempt",
        "POST",
        "/runs/{own}/attempts/1/exit",
        409,
        "attempt_lost",
        body={"worker": "w9", "outcome": "finished", "reason": ""},
        by="worker",
    ),
    Hostile(
        "an Idempotency-Key with another body",
        "POST",
        "/runs",
        422,
        "idempotency_conflict",
        "'k'",
        spec(seed=1),
        {"Idempotency-Key": "k"},
        after=FIRST,
    ),
    Hostile("another's Idempotency-Key", "POST", "/runs", 201, None, '"owner":"admin"', spec(), {"Idempotency-Key": "k"}, "admin", FIRST),
    Hostile(
        "an Idempotency-Key of 300 letters",
        "POST",
        "/runs",
        422,
        "invalid_request",
        "idempotency-key",
        spec(),
        {"Idempotency-Key": "k" * 300},
    ),
    Hostile(
        "an Idempotency-Key that names another's",
        "POST",
        "/runs",
        201,
        None,
        '"owner":"alice"',
        spec(),
        {"Idempotency-Key": "../admin:k"},
        after=FIRST,
    ),
]
PROTOCOL = [
    Hostile("a path of 5,000 letters", "GET", "/runs/" + "x" * 5000, 414, "uri_too_long"),
    Hostile("headers of 20 KiB", "GET", "/runs", 431, "headers_too_large", headers={"X-Large": "x" * 20_000}),
    Hostile("a method override", "GET", "/runs/{own}/cancel", 405, "method_not_allowed", headers={"X-HTTP-Method-Override": "POST"}),
    Hostile("a method of another protocol", "PROPFIND", "/runs", 405, "method_not_allowed"),
    Hostile("TRACE", "TRACE", "/runs", 405, "method_not_allowed"),
    Hostile("a line break in a path", "GET", "/runs/x%0D%0ASet-Cookie:%20a=b", 404, "run_not_found", "'x\\r\\nSet-Cookie"),
    Hostile("another host's name", "GET", "/runs/{own}/", 404, "not_found", headers={"Host": "evil.example"}),
    Hostile("a path that is rewritten", "GET", "/runs//{own}", 404, "not_found", headers={"X-Original-URL": "/metrics"}),
    Hostile("a negative limit", "GET", "/runs?limit=-1", 422, "invalid_request", "limit"),
    Hostile("a limit of 10^30", "GET", f"/runs?limit={10**30}", 422, "invalid_request", "limit"),
    Hostile("a cursor that is code", "GET", "/runs?cursor=0;FLUSHALL", 422, "invalid_request", "cursor"),
    Hostile("a label without a value", "GET", "/runs?label=seed", 422, "invalid_request", "label"),
    Hostile("a label that is code", "GET", "/runs?label=a=%22%7D)%20redis.call('FLUSHALL')", 200, None, '"runs":[]'),
    Hostile("a status that there is not", "GET", "/runs?status=root", 422, "invalid_request", "'succeeded'"),
    Hostile("a log before its begin", "GET", f"{LOG}?offset=-1", 422, "invalid_request", "offset"),
    Hostile("a log far behind its end", "GET", f"{LOG}?offset={1 << 62}", 200, None),
    Hostile("an attempt of 10^18", "GET", f"{LOG}?attempt={10**18}", 422, "invalid_request", "attempt"),
    Hostile("a wait for version -1", "GET", "/runs/{own}?wait_for_version=-1", 422, "invalid_request", "wait_for_version"),
    Hostile("a log followed 7 times", "GET", "/runs/{own}/logs?follow=7", 422, "invalid_request", "follow"),
    Hostile("a wait of a day", "GET", "/runs/{own}?wait_for_version=99&timeout=86400", 422, "invalid_request", "timeout"),
    Hostile("a wait of NaN", "GET", "/runs/{own}?wait_for_version=99&timeout=nan", 422, "invalid_request", "timeout"),
    Hostile(
        "a stream that goes on from nowhere",
        "GET",
        "/runs/{own}/events",
        422,
        "invalid_request",
        "last-event-id",
        None,
        {**STREAM, "Last-Event-ID": "0-0; DROP"},
    ),
    Hostile("an If-Match that is no ETag", "PATCH", "/runs/{own}", 422, "invalid_request", "if-match", {"priority": 1}, {"If-Match": "x"}),
    Hostile("a range behind the end", "GET", FILE, 416, "range_not_satisfiable", "has 5 bytes", headers={"Range": "bytes=99-"}),
    Hostile("a range of 10^30", "GET", FILE, 200, None, "12345", headers={"Range": f"bytes=0-{10**30}"}),
    Hostile("a thousand ranges", "GET", FILE, 200, None, "12345", headers={"Range": "bytes=" + ",".join(["0-4"] * 1000)}),
    Hostile("a checkpoint of 10^18", "GET", f"/runs/{{own}}/checkpoints/{10**18}/files", 422, "invalid_request", "step"),
]
CASES = [*PATHS, *BODIES, *PEOPLE, *PROTOCOL]
