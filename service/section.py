"""What every section of a specification is."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from service.numbers import NumbersAreNumbers

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(NumbersAreNumbers):
    """Frozen; unknown keys are refused; NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True)
