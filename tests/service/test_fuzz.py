"""Schemathesis makes requests of the OpenAPI document, right and wrong ones, and holds the answers to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.app import create_app
from service.settings import Settings
from tests.conftest import ADMIN_KEY, bearer
from tests.service.hostile import Ground, ground

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
OPERATIONS = [
    (path, method, mode)
    for path, methods in create_app(Settings()).openapi()["paths"].items()
    for method, operation in methods.items()
    for mode in ((RIGHT, WRONG) if operation.keys() & {"parameters", "requestBody"} else (RIGHT,))
]
EXAMPLES = 40
"""Of each operation and mode: more find more, `make test` has a minute."""


@pytest.fixture(scope="module")
def field(redis_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(f"{redis_session}/7", tmp_path_factory.mktemp("ground")) as found:
        yield found


@pytest.fixture(scope="module")
def schema(field: Ground) -> Any:
    """Without what waits for news that do not come."""
    document = field.http.get("/openapi.json").json()
    for methods in document["paths"].values():
        for operation in methods.values():
            if "parameters" in operation:
                operation["parameters"] = [p for p in operation["parameters"] if p["name"] not in ("follow", "wait_for_version")]
    del document["components"]["schemas"]["Poll"]["properties"]["wait_seconds"]
    return schemathesis.openapi.from_dict(document)


@pytest.mark.parametrize(("path", "method", "mode"), OPERATIONS)
def test_no_request_breaks_the_api_or_is_answered_with_what_is_not_documented(
    field: Ground, schema: Any, path: str, method: str, mode: GenerationMode
) -> None:
    """Requests that fit the document, and that do not: a wrong body is refused; half of the runs' routes get a run that there is."""
    operation = schema[path][method]
    own = iter(lambda: field.ids["own"], None)

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        for real in (False, True) if "run_id" in case.path_parameters else (False,):
            if real:
                case.path_parameters["run_id"] = next(own)
            answer = case.call(base_url=str(field.http.base_url), headers=bearer(ADMIN_KEY), timeout=20)
            case.validate_response(answer, checks=[*CHECKS, negative_data_rejection] if _has_wrong_body(case) else CHECKS)

    ask()


def _has_wrong_body(case: Case) -> bool:
    """What is wrong as JSON may be right as the text of a URL or a header: `true` for a string. hostile_cases.py has those."""
    body = case.meta.components.get(ParameterLocation.BODY) if case.meta else None
    return body is not None and body.mode is WRONG
