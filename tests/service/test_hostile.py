"""Hostile requests: each is answered as the table says, and nothing else happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from tests.conftest import ADMIN_KEY, bearer
from tests.service.hostile import PAGE, Ground, ground, render
from tests.service.hostile_cases import CASES, Hostile


@pytest.fixture(scope="module")
def battered(redis_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(f"{redis_session}/5", tmp_path_factory.mktemp("ground")) as found:
        yield found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_hostile_request_is_refused_and_told_why(battered: Ground, case: Hostile) -> None:
    """With this status and code, as a problem document; no header is made of what was sent, and the API goes on."""
    answer = battered.ask(case)
    assert answer.status_code == case.status, answer.text
    if case.code is not None:
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == case.code
        assert answer.json()["status"] == case.status
    said = answer.json()["detail"] if case.code else answer.text
    assert case.fragment in battered.shown(said), answer.text
    assert "set-cookie" not in answer.headers
    assert battered.http.get("/readyz").status_code == 200


def test_every_hostile_answer_is_documented(battered: Ground) -> None:
    """In the OpenAPI document, at its route and status; what has no route is not_found or method_not_allowed."""
    paths = battered.http.get("/openapi.json").json()["paths"]
    for case in CASES:
        asked = unquote(case.path.partition("?")[0])
        templates = [path for path in paths if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), asked, re.DOTALL)]
        operation = paths[templates[0]].get(case.method.lower()) if templates else None
        if operation is None:
            assert case.code in ("not_found", "method_not_allowed", "uri_too_long", "unauthenticated"), case
        else:
            assert case.code is None or case.code in operation["responses"][str(case.status)]["x-codes"], case
            assert str(case.status) in operation["responses"], case


def test_hostile_requests_change_nothing(battered: Ground) -> None:
    """The runs are those that were submitted, in their status; the folders hold what they held."""
    before = {path.relative_to(battered.directory) for path in battered.directory.rglob("*")}
    for case in CASES:
        battered.ask(case)
    assert {path.relative_to(battered.directory) for path in battered.directory.rglob("*")} == before
    runs = battered.http.get("/runs?limit=200", headers=bearer(ADMIN_KEY)).json()["runs"]
    statuses = {run["id"]: run["status"] for run in runs}
    assert statuses[battered.ids["own"]] == "running"
    assert set(statuses.values()) == {"running", "queued"}


def test_the_page_of_hostile_requests_says_what_the_api_says(battered: Ground) -> None:
    """docs/hostile.md is up to date: `python -m tests.service.hostile` writes it."""
    assert len(CASES) >= 40
    assert PAGE.read_text() == render(battered)
