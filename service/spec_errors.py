"""Pydantic's errors as field, value and remedy. The API's problem documents and the command line print the same ones."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Union

from pydantic import BaseModel

from service.errors import FieldError
from service.sections import describe


def field_errors(errors: Sequence[Any], model: type[BaseModel]) -> list[FieldError]:
    """One FieldError for each of pydantic's error dictionaries about `model`; a leading "body" in their paths is dropped."""
    return [_field_error(error, model) for error in errors]


def _field_error(error: Mapping[str, Any], model: type[BaseModel]) -> FieldError:
    path = [part for i, part in enumerate(error["loc"]) if not (i == 0 and part == "body")]
    kind, value, message = error["type"], error.get("input"), str(error["msg"])
    field = ".".join(str(part) for part in path)
    if kind == "extra_forbidden":
        return FieldError(field, value, _unknown_key(str(path[-1]), _section_at(model, path[:-1])))
    if kind == "missing":
        return FieldError(field, None, f"is required{_help(model, path)}")
    if kind == "value_error":
        message = message.removeprefix("Value error, ")
        section = _section_at(model, path)
        if section is not None:  # a check across fields: its message names the first field that it is about
            first = message.split(" ", 1)[0]
            named = f"{field}.{first}" if field else first
            known = _section_at(model, named.split(".")[:-1])
            if known is not None and named.split(".")[-1] in known.model_fields:
                return FieldError(named, _value_at(value, named.split(".")[len(path) :]), message)
            return FieldError(field, None, message)
        return FieldError(field, value, message)
    return FieldError(field, value, f"{describe(value)}: {message[:1].lower()}{message[1:]}{_help(model, path)}")


def _unknown_key(key: str, section: type[BaseModel] | None) -> str:
    known = sorted(section.model_fields) if section else []
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"unknown key {key!r}: {remedy}"


def _section_at(model: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    """The model at `path` below `model`, or None where the path ends at a plain value."""
    for part in path:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        found = _model_in(field.annotation) if field else None
        if found is None:
            return None
        model = found
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return next((m for m in map(_model_in, typing.get_args(annotation)) if m), None)
    return None


def _help(model: type[BaseModel], path: Sequence[Any]) -> str:
    """The field's docstring, which states its unit and bounds, as the remedy."""
    for end in range(len(path), 0, -1):
        section = _section_at(model, path[: end - 1])
        if section is not None and path[end - 1] in section.model_fields:
            description = section.model_fields[path[end - 1]].description
            return f". {' '.join(description.split())}" if description else ""
    return ""


def _value_at(document: Any, path: Sequence[Any]) -> Any:
    for part in path:
        document = document.get(part) if isinstance(document, Mapping) else getattr(document, str(part), None)
    return document
