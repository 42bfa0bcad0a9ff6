"""Query parameters that a route does not have."""

from __future__ import annotations

from fastapi import Request
from fastapi.exceptions import RequestValidationError


async def refuse_unknown_query(request: Request) -> None:
    """A dependency. Ignored, a misspelt filter would answer with everything."""
    known = sorted(parameter.alias for parameter in request.scope["route"].dependant.query_params)
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        message = f"unknown query parameter: {'known here: ' + ', '.join(known) if known else 'this route takes none'}"
        raise RequestValidationError(
            [{"type": "unknown_query", "loc": ("query", name), "msg": message, "input": request.query_params[name]} for name in unknown]
        )
