"""Request bodies: how large one may be, and a specification in JSON or YAML."""

from __future__ import annotations

import json

import yaml
from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import FieldError, InvalidSpec
from service.spec import RunSpec, parse_spec, read_spec

MAX_BODY_BYTES = 4 << 20


class LimitBodies:
    """Refuses a body of more than MAX_BODY_BYTES while it arrives, so that none fills the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES or _announced(scope) > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes: send it in pieces")
            return message

        await self._app(scope, bounded if scope["type"] == "http" else receive, send)


def _announced(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() else 0


def read_body(body: bytes, content_type: str) -> RunSpec:
    """A specification as it was posted. Raises InvalidSpec."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidSpec([FieldError("", None, f"the body is not UTF-8 at byte {error.start}")]) from None
    if "yaml" in content_type:
        _refuse_aliases(text)
        return read_spec(text)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        message = f"the body is not JSON at {where}: {error.msg}; YAML goes with Content-Type: application/yaml"
        raise InvalidSpec([FieldError("", None, message)]) from None
    except RecursionError:
        raise InvalidSpec([FieldError("", None, "the body is nested too deeply for a specification")]) from None
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InvalidSpec([FieldError("", None, f"a specification is a mapping of sections, this is a {kind}")])
    return parse_spec(document)


def _refuse_aliases(text: str) -> None:
    """A few lines of aliases can stand for a document that fills the memory."""
    try:
        aliased = any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return  # read_spec says where it is wrong
    if aliased:
        raise InvalidSpec([FieldError("", None, "YAML aliases (*name) are not taken here: write the value out")])
