"""The example specifications."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.presets import PRESETS
from service.spec import read_spec

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_a_valid_specification_and_states_where_it_comes_from(path: Path) -> None:
    """Source, command, time and accuracy, or that they were not measured."""
    text = path.read_text()
    assert read_spec(text).preset == path.stem
    for word in ("Source", "Command", "Time", "Accuracy"):
        assert f"\n# {word} " in text


def test_every_preset_has_an_example() -> None:
    """None is forgotten when a preset is added."""
    assert {path.stem for path in EXAMPLES} == set(PRESETS)
