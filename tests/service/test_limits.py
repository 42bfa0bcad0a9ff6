"""How much one client may ask for: per second, at once, and in one request."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import bodies, connections, limits
from api.auth import MAX_HEADER_BYTES, MAX_URI_BYTES
from api.limits import BURST_SECONDS, MAX_NAMES, Buckets, Limits
from service.errors import RateLimited
from service.runs import Key, Role
from service.settings import Settings
from tests.conftest import ADMIN_KEY, WORKER_KEY, bearer, emptied, new_key, running_api, with_first_keys

RATE = 10.0
BURST = int(RATE * BURST_SECONDS)


def key(name: str, role: Role = Role.USER) -> Key:
    return Key(id=f"mw_{name}", name=name, role=role, created_at=0.0)


@given(st.lists(st.floats(min_value=0.0, max_value=30.0), max_size=60))
def test_no_client_gets_more_than_its_rate_and_one_burst(pauses: list[float]) -> None:
    """Whatever it waits between requests; and who waits as long as it is told is let in."""
    now = 1000.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits.time, "monotonic", lambda: now)
        buckets, passed, wait = Buckets(2.0), 0, 0.0
        for pause in [*pauses, *[0.0] * 20]:
            now += pause
            wait = buckets.take("alice")
            passed += wait == 0.0
        assert 10 <= passed <= 10 + 2.0 * (now - 1000.0)
        assert 0.0 < wait <= 0.5
        now += wait + 1e-9
        assert buckets.take("alice") == 0.0


def test_clients_that_are_quiet_are_forgotten() -> None:
    """The memory of a guesser with many addresses stays small, and the busy ones stay in it."""
    buckets = Buckets(1.0)
    for _ in range(5):
        buckets.take("busy")
    for number in range(MAX_NAMES + 100):
        buckets.take(f"host-{number}")
        if number % 100 == 0:
            buckets.take("busy")
    assert len(buckets._levels) == MAX_NAMES
    assert buckets.take("busy") > 0.0


def test_one_subscriber_of_ipv6_is_one_client() -> None:
    """It has 2^64 addresses."""
    counted = Limits(10.0)
    for number in range(5):
        counted.stranger(f"2001:db8:1:2::{number:x}")
    with pytest.raises(RateLimited, match="without a valid key"):
        counted.stranger("2001:db8:1:2::ffff")
    counted.stranger("2001:db8:1:3::1")
    counted.stranger("192.0.2.1")
    counted.stranger("")


def test_requests_under_way_are_bounded_for_one_key_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits or streams holds its place until it ends; workers, of which there may be a thousand, are not counted."""
    monkeypatch.setattr(limits, "UNDER_WAY_OF_KEY", 3)
    monkeypatch.setattr(limits, "UNDER_WAY", 5)
    counted = Limits(1e6)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(counted.known(key("alice")))
        with pytest.raises(RateLimited, match="3 requests of the key 'alice' are under way"):
            stack.enter_context(counted.known(key("alice")))
        for name in ("bob", "carol"):
            stack.enter_context(counted.known(key(name)))
        with pytest.raises(RateLimited, match="the limit of one API process"):
            stack.enter_context(counted.known(key("dave")))
        for _ in range(100):
            stack.enter_context(counted.known(key("node", Role.WORKER)))
    with counted.known(key("dave")):
        pass
    assert not counted._under_way


@pytest.fixture(scope="module")
def limited_session(redis_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """An API with a low rate, and its Redis."""
    redis_url = emptied(f"{redis_session}/3")
    settings = Settings(redis_url=redis_url, state_dir=tmp_path_factory.mktemp("limited"), rate_limit=RATE)
    with running_api(settings) as url:
        yield url, redis_url


@pytest.fixture
def limited(limited_session: tuple[str, str]) -> Iterator[httpx.Client]:
    url, redis_url = limited_session
    with_first_keys(emptied(redis_url))
    with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
        yield client


def hammer(client: httpx.Client, count: int, **request: object) -> list[httpx.Response]:
    return [client.get("/runs", **request) for _ in range(count)]  # type: ignore[arg-type]


def test_a_key_that_asks_too_often_is_told_to_wait(limited: httpx.Client, limited_session: tuple[str, str]) -> None:
    """429 with Retry-After, after which it is let in; other keys, and those of workers, go on."""
    eager, calm = (bearer(new_key(limited_session[1], name)) for name in ("eager", "calm"))
    answers = hammer(limited, BURST * 2, headers=eager)
    assert BURST <= sum(answer.is_success for answer in answers) < BURST * 2
    refusal = answers[-1]
    assert (refusal.status_code, refusal.json()["code"]) == (429, "rate_limited")
    assert "MILLIONWAY_RATE_LIMIT" in refusal.json()["detail"]
    assert limited.get("/runs", headers=calm).status_code == 200
    assert {answer.status_code for answer in hammer(limited, BURST * 2, headers=bearer(WORKER_KEY))} == {403}
    time.sleep(float(refusal.headers["retry-after"]))
    assert limited.get("/runs", headers=eager).status_code == 200


def test_guessing_is_slow_and_shuts_nobody_out(limited: httpx.Client) -> None:
    """An address without a valid key is stopped, with wrong keys and with none; a key that is in use still passes from there."""
    assert limited.get("/runs", headers=bearer(ADMIN_KEY)).status_code == 200
    guesses = [limited.get("/runs", headers=bearer(f"mw_{n}") if n % 2 else {}).status_code for n in range(BURST)]
    assert guesses[0] == 401
    assert guesses[-1] == 429
    assert guesses.count(401) < BURST / 2
    assert limited.get("/readyz").status_code == 429
    assert limited.get("/runs", headers=bearer(ADMIN_KEY)).status_code == 200


def test_waiting_requests_hold_a_place_and_give_it_back(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long poll counts while it waits, a stream while it is read."""
    monkeypatch.setattr(limits, "UNDER_WAY_OF_KEY", 2)
    run = http.post("/runs", json={"preset": "demo", "data": {"path": "/data"}}).json()
    waiting = threading.Thread(target=http.get, args=(f"/runs/{run['id']}?wait_for_version=99&timeout=2",))
    waiting.start()
    with http.stream("GET", f"/runs/{run['id']}/events", headers={"Accept": "text/event-stream"}) as stream:
        assert stream.status_code == 200
        refusal = http.get("/runs")
        assert (refusal.status_code, "under way" in refusal.json()["detail"]) == (429, True)
    waiting.join()
    time.sleep(0.2)
    assert http.get("/runs").status_code == 200


def test_long_paths_and_large_headers_are_refused(http: httpx.Client) -> None:
    """414 and 431, as problem documents."""
    found = [http.get("/runs/" + "x" * MAX_URI_BYTES), http.get("/runs", headers={"X-Large": "x" * MAX_HEADER_BYTES})]
    assert [(answer.status_code, answer.json()["code"]) for answer in found] == [(414, "uri_too_long"), (431, "headers_too_large")]


def trickle(url: str, path: str, body: bytes, pause: float, key: str = ADMIN_KEY) -> bytes:
    """The answer to a body that comes byte by byte."""
    parts = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        connection.settimeout(pause)
        for byte in body:
            connection.sendall(bytes([byte]))
            try:
                return connection.recv(65536)
            except TimeoutError:
                continue
        connection.settimeout(10)
        return connection.recv(65536)


def test_a_body_that_trickles_is_cut(api_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 once its time is over; one that comes slowly but in time is taken, and a stranger's is not read at all."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    for path in ("/runs", "/workers/w1/poll"):
        answer = trickle(api_url, path, b" " * 100, 0.1)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"body_too_slow" in answer
    assert trickle(api_url, "/runs", b"[    ]", 0.05).startswith(b"HTTP/1.1 422 ")
    assert trickle(api_url, "/runs", b" " * 100, 5.0, key="mw_wrong").startswith(b"HTTP/1.1 401 ")


HALF = b"GET /healthz HTTP/1.1\r\n"


@pytest.mark.parametrize("heads", [[b""], [HALF], [HALF + b"Host: x\r\n\r\n", HALF]])
def test_a_head_that_does_not_come_to_its_end_is_not_waited_for(api_url: str, monkeypatch: pytest.MonkeyPatch, heads: list[bytes]) -> None:
    """A connection without a request, one with half of it, and one whose second request is half there."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    parts = urlsplit(api_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        for head in heads[:-1]:
            connection.sendall(head)
            assert b"200 OK" in connection.recv(65536)
        connection.sendall(heads[-1])
        begun = time.monotonic()
        while connection.recv(65536):
            pass
        assert 0.3 < time.monotonic() - begun < 4.0


def test_a_head_without_end_is_cut(api_url: str) -> None:
    """Before it fills the memory."""
    parts, sent = urlsplit(api_url), 0
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Endless: ")
        while sent < 64 << 20:
            sent += connection.send(b"x" * 65536)
    assert sent < 16 << 20


def test_a_refused_body_does_not_end_the_connection(stranger: httpx.Client) -> None:
    """Of a body that nobody reads the rest is dropped, and the next request comes over the same connection."""
    for _ in range(20):
        assert stranger.post("/runs", content=b"x" * (2 << 20)).status_code == 401
        assert stranger.get("/healthz").status_code == 200


def test_what_follows_a_slow_answer_is_not_cut(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is the head's and the body's: a request may wait for news for longer."""
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    run = http.post("/runs", json={"preset": "demo", "data": {"path": "/data"}}).json()
    assert http.get(f"/runs/{run['id']}?wait_for_version=99&timeout=1").status_code == 200


def test_a_queue_takes_so_many_runs_of_one_owner(redis_session: str, tmp_path: Path) -> None:
    """429 queue_full; another owner's still takes some, and so does the first once a run has left it."""
    redis_url = with_first_keys(emptied(f"{redis_session}/4"))
    other = bearer(new_key(redis_url, "alice"))
    with (
        running_api(Settings(redis_url=redis_url, state_dir=tmp_path, max_queued=2)) as url,
        httpx.Client(base_url=url, headers=bearer(ADMIN_KEY), trust_env=False) as client,
    ):
        document = {"preset": "demo", "data": {"path": "/data"}}
        answers = [client.post("/runs", json=document) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        assert answers[-1].json()["code"] == "queue_full"
        assert client.post("/runs", json=document, headers=other).status_code == 201
        assert client.post(f"/runs/{answers[0].json()['id']}/cancel").status_code == 202
        assert client.post("/runs", json=document).status_code == 201
