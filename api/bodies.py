"""Request bodies: how large and how slow one may be, and a specification in JSON or YAML."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import yaml
from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import FieldError, InvalidSpec
from service.spec import RunSpec, parse_spec, read_spec

MAX_BODY_BYTES = 4 << 20
SPEC_PATHS = ("/runs", "/runs:plan")
MAX_SPEC_BYTES = 256 << 10
"""Of a specification: parsing YAML takes a second or two per MiB."""
BODY_SECONDS = 30.0
"""Within which a body must have arrived."""
MAX_DEPTH = 100
TOO_DEEP = "the body is nested too deeply for a specification"
STARTS = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken, yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
ENDS = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


class LimitBodies:
    """Refuses a larger or a slower body while it arrives, so that none fills the memory or holds its place for ever."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received, arrived, deadline = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS
        limit, remedy = MAX_BODY_BYTES, "send it in pieces"
        if scope["path"] in SPEC_PATHS or scope["path"].endswith("/fork"):
            limit, remedy = MAX_SPEC_BYTES, "a specification fits into less"

        async def bounded() -> Message:
            nonlocal received, arrived
            if arrived:  # what follows is the client's going away
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body was not there after {BODY_SECONDS:g} s: send it faster, or in pieces") from None
            arrived = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > limit or _announced(scope) > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes: {remedy}")
            return message

        await self._app(scope, bounded, send)


def _announced(scope: Scope) -> int:
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


def read_body(body: bytes, content_type: str) -> RunSpec:
    """A specification as it was posted. Raises InvalidSpec, and HTTPException 415 for another type.

    A web page can make a browser post other types, and bodies without one, to a loopback address unasked; these two it cannot.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in ("application/json", "application/yaml"):
        given = f"Content-Type is {media_type!r}" if media_type else "Content-Type is missing"
        raise HTTPException(415, f"{given}: send application/json or application/yaml")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidSpec([FieldError("", None, f"the body is not UTF-8 at byte {error.start}")]) from None
    if media_type == "application/yaml":
        _refuse_costly(text)
        return read_spec(text)
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        message = f"the body is not JSON at {where}: {error.msg}; YAML goes with Content-Type: application/yaml"
        raise InvalidSpec([FieldError("", None, message)]) from None
    except ValueError as error:  # an integer of thousands of digits
        raise InvalidSpec([FieldError("", None, f"the body holds a number that cannot be read: {error}")]) from None
    except RecursionError:
        raise InvalidSpec([FieldError("", None, TOO_DEEP)]) from None
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InvalidSpec([FieldError("", None, f"a specification is a mapping of sections, this is a {kind}")])
    return parse_spec(document)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping; a key that stands twice would lose its earlier value without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise InvalidSpec([FieldError("", None, f"the key {key!r} stands twice in a mapping: leave one out")])
    return found


def _refuse_costly(text: str) -> None:
    """A few lines of aliases can stand for a document that fills the memory, and deep nesting takes PyYAML minutes."""
    depth = 0
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise InvalidSpec([FieldError("", None, "YAML aliases (*name) are not taken here: write the value out")])
            depth += isinstance(token, STARTS) - isinstance(token, ENDS)
            if depth > MAX_DEPTH:
                raise InvalidSpec([FieldError("", None, TOO_DEEP)])
    except (yaml.YAMLError, ValueError):
        return  # read_spec says where it is wrong
