"""true and false are no numbers: pydantic takes them for 1 and 0, YAML makes them of `yes` and `off`."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ValidationInfo, field_validator


class NumbersAreNumbers(BaseModel):
    """Refuses a truth value for a field that is none."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name:
            kind = cls.model_fields[info.field_name].annotation
            if kind is not bool and bool not in get_args(kind):
                raise ValueError(f"{info.field_name} is {str(value).lower()}, and is no matter of true or false: give its value")
        return value
