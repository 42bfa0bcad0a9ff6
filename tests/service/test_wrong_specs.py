"""Wrong specifications, posted to the API: each is told its field and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service.settings import Settings
from tests.conftest import ADMIN_KEY, NO_LIMIT, bearer, emptied, running_api, with_first_keys
from tests.service.wrong_specs import CASES, PAGE, RIGHT, Wrong, body, make_folders, render

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    make_folders(root)
    return root


@pytest.fixture(scope="module")
def sighted(redis_session: str, folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An API that sees the workers' files, of which some are allowed."""
    settings = Settings(
        redis_url=with_first_keys(emptied(f"{redis_session}/6")),
        state_dir=tmp_path_factory.mktemp("api"),
        shared_files=True,
        data_roots=(str(folders),),
        rate_limit=NO_LIMIT,
    )
    with running_api(settings) as url, httpx.Client(base_url=url, headers=bearer(ADMIN_KEY), trust_env=False) as client:
        yield client


def test_the_specification_that_the_cases_spoil_is_accepted(sighted: httpx.Client, folders: Path) -> None:
    """Otherwise the cases below would prove nothing."""
    right = Wrong("nothing", RIGHT, "", "")
    assert sighted.post("/runs", content=body(right, folders), headers=JSON).status_code == 201


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_wrong_specification_is_told_its_field_and_the_remedy(sighted: httpx.Client, folders: Path, case: Wrong) -> None:
    """422, exactly one mistake, named by its field."""
    answer = sighted.post("/runs", content=body(case, folders), headers=JSON)
    assert answer.status_code == 422
    [error] = answer.json()["errors"]
    assert error["field"] == case.field
    assert error["pointer"] == "".join(f"/{part}" for part in case.field.split(".") if part)
    assert case.fragment in error["message"]


def test_without_shared_files_the_disk_is_the_workers_business(http: httpx.Client) -> None:
    """A path that this machine does not have is accepted."""
    assert http.post("/runs", content=body(Wrong("", RIGHT, "", ""), Path("/nowhere")), headers=JSON).status_code == 201


def test_the_page_of_errors_says_what_the_code_says() -> None:
    """docs/errors.md is up to date: `python -m tests.service.wrong_specs` writes it."""
    assert PAGE.read_text() == render()
