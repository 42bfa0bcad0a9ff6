"""The problems that a route can answer with, in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from api.problems import (
    BODY_TOO_LARGE,
    BODY_TOO_SLOW,
    HEADERS_TOO_LARGE,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    KIND_OF_CODE,
    KINDS,
    MEDIA_TYPE,
    URI_TOO_LONG,
    Kind,
)
from service.errors import Forbidden, MillionwayError, RateLimited, StoreUnavailable, Unauthenticated


def documents(*errors: type[MillionwayError] | Kind) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the problems that a route itself can answer with, beside a wrong request and an absent store."""
    return {int(status): entry for status, entry in _entries([*map(_kind, errors), KINDS[StoreUnavailable], INVALID_REQUEST]).items()}


def document_everywhere(paths: dict[str, dict[str, Any]], open_paths: frozenset[str]) -> None:
    """Adds to each operation of an OpenAPI document what comes from before its route: key, role, limits, and our own failure."""
    for path, operations in paths.items():
        for operation in operations.values():
            kinds = [INTERNAL_ERROR, URI_TOO_LONG, HEADERS_TOO_LARGE, KINDS[RateLimited]]
            if path not in open_paths:
                kinds += [KINDS[Unauthenticated], KINDS[Forbidden], KINDS[StoreUnavailable]]
            if "requestBody" in operation:
                kinds += [BODY_TOO_LARGE, BODY_TOO_SLOW, INVALID_REQUEST]
            answers = operation["responses"]
            kinds += [KIND_OF_CODE[code] for answer in answers.values() for code in answer.get("x-codes", ())]
            answers |= _entries(kinds)


def _kind(error: type[MillionwayError] | Kind) -> Kind:
    return error if isinstance(error, Kind) else KINDS[error]


def _entries(kinds: Iterable[Kind]) -> dict[str, dict[str, Any]]:
    by_status: dict[str, dict[str, Kind]] = {}
    for kind in sorted(kinds):
        by_status.setdefault(str(kind.status), {})[kind.code] = kind
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {
            "description": "; ".join(f"{kind.title} (`{kind.code}`)" for kind in found.values()),
            "content": content,
            "x-codes": list(found),
        }
        for status, found in by_status.items()
    }
