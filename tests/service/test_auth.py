"""Who may ask for what, and what becomes of keys."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil

import httpx
import pytest

import api
from api import known_keys
from api.app import create_app
from api.auth import OPEN
from api.routes_page import FILES
from service.keys import Keys, new_secret
from service.redis_call import connect
from service.runs import Role
from service.settings import Settings
from tests.conftest import ADMIN_KEY, WORKER_KEY, bearer, new_key, wait_until

PATH = {"run_id": "none", "attempt": "1", "name": "rank-0.log", "worker": "w1", "step": "1"}


def routes() -> list[tuple[str, str]]:
    """Method and path of everything that the application answers, also of what the OpenAPI document leaves out."""
    names = [module.name for module in pkgutil.iter_modules(api.__path__) if module.name.startswith("routes_")]
    found = [route for name in names for route in importlib.import_module(f"api.{name}").router.routes]
    return [(method, route.path) for route in found for method in sorted(route.methods)]


def roles(method: str, path: str) -> set[Role]:
    """As service/protocol.py has it. A route that it does not know is the users'."""
    if path.endswith("/drain"):
        return {Role.ADMIN}
    if path.endswith("/poll") or "/attempts/{attempt}/" in path:
        return {Role.WORKER, Role.ADMIN}
    return {Role.USER, Role.ADMIN}


GUARDED = [(method, path) for method, path in routes() if path not in OPEN]


def test_only_health_metrics_the_document_and_the_page_are_open(stranger: httpx.Client) -> None:
    """They say nothing of a run or its owner."""
    documented = create_app(Settings()).openapi()["paths"]
    assert {path for _, path in routes()} == documented.keys()
    assert documented.keys() & OPEN == {"/healthz", "/readyz", "/metrics", *FILES}
    for path in sorted(OPEN):
        assert stranger.get(path).status_code == 200, path


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_other_route_needs_a_key_of_its_role(stranger: httpx.Client, user_key: str, method: str, path: str) -> None:
    """401 without a key, with a wrong one and with another scheme; 403 with the wrong role, and with the right one neither."""
    url = path.format(**PATH)
    for headers in (
        {},
        bearer(new_secret()),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {ADMIN_KEY}"},
        {"Authorization": ADMIN_KEY},
    ):
        refusal = stranger.request(method, url, headers=headers)
        assert refusal.status_code == 401, headers
        assert refusal.headers["www-authenticate"].startswith("Bearer ")
        assert method == "HEAD" or refusal.json()["code"] == "unauthenticated"
    for role, key in ((Role.USER, user_key), (Role.WORKER, WORKER_KEY), (Role.ADMIN, ADMIN_KEY)):
        status = stranger.request(method, url, headers=bearer(key)).status_code
        assert (status == 403) == (role not in roles(method, path)), (role, status)
        assert status != 401


@pytest.mark.parametrize(("method", "path"), [(m, p) for m, p in GUARDED if "{run_id}" in p and Role.USER in roles(m, p)])
def test_another_owners_run_does_not_exist(http: httpx.Client, user_key: str, method: str, path: str) -> None:
    """404, with the words for a run that there never was."""
    run_id = http.post("/runs", json={"preset": "demo", "data": {"path": "/data"}}).json()["id"]
    body = {"json": {}} if method in ("POST", "PATCH") else {}
    refusal = http.request(method, path.format(**{**PATH, "run_id": run_id}), headers=bearer(user_key), **body)
    never = http.request(method, path.format(**{**PATH, "run_id": "0000000000"}), headers=bearer(user_key), **body)
    assert (refusal.status_code, never.status_code) == (404, 404)
    if method != "HEAD":
        assert refusal.json()["code"] == "run_not_found"
        assert refusal.text.replace(run_id, "0000000000") == never.text


def test_a_user_lists_and_changes_what_keys_of_its_name_submitted(http: httpx.Client, user_key: str, redis_session: str) -> None:
    """A second key of the name sees the same runs; the administrator sees all."""
    second = new_key(f"{redis_session}/1", "alice")
    document = {"preset": "demo", "data": {"path": "/data"}}
    own = http.post("/runs", json=document, headers=bearer(user_key)).json()
    foreign = http.post("/runs", json=document).json()
    assert (own["owner"], foreign["owner"]) == ("alice", "admin")
    for key in (user_key, second):
        assert [run["id"] for run in http.get("/runs", headers=bearer(key)).json()["runs"]] == [own["id"]]
        assert http.post(f"/runs/{own['id']}/cancel", headers=bearer(key)).status_code == 202
    assert len(http.get("/runs").json()["runs"]) == 2


def test_one_owners_idempotency_key_is_not_anothers(http: httpx.Client, user_key: str) -> None:
    """The same Idempotency-Key makes one run for each of them."""
    document = {"preset": "demo", "data": {"path": "/data"}}
    ids = {http.post("/runs", json=document, headers={"Idempotency-Key": "k", **bearer(k)}).json()["id"] for k in (user_key, ADMIN_KEY) * 2}
    assert len(ids) == 2


def test_a_revoked_key_stops_working_within_seconds(http: httpx.Client, redis_session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the API has used it a moment ago."""
    monkeypatch.setattr(known_keys, "KEPT_SECONDS", 0.3)
    key = new_key(f"{redis_session}/1", "bob")
    assert http.get("/runs", headers=bearer(key)).status_code == 200

    async def revoke() -> None:
        async with connect(f"{redis_session}/1") as redis:
            await Keys(redis).revoke(next(found.id for found in await Keys(redis).list() if found.name == "bob"))

    asyncio.run(revoke())
    wait_until(lambda: http.get("/runs", headers=bearer(key)).status_code == 401, "the key is refused", seconds=2)
