"""Messages between versions: the API may be newer than a worker or a command line."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from service.protocol import Claim
from service.runs import Run
from service.spec import StoredSpec
from tests.service.documents import spec


def test_a_claim_of_a_newer_api_is_understood() -> None:
    """What it added to the specification, at any depth, is ignored; what is wrong is still refused."""
    document = Claim(run_id="r", attempt=1, spec=spec(), lease_seconds=60).model_dump(mode="json")
    document["spec"] |= {"added": 1}
    document["spec"]["classifier"] |= {"added_too": 2}
    assert Claim.model_validate(document).spec == spec()
    document["spec"]["classifier"] |= {"temperature": -1}
    with pytest.raises(ValidationError, match="temperature"):
        Claim.model_validate(document)


def test_a_run_of_a_newer_api_is_understood() -> None:
    """As a claim is: both hold a stored specification, and its schema stays that of RunSpec."""
    times = {"created_at": 1.0, "updated_at": 1.0}
    document = Run(id="r", name="n", status="queued", reason="", version=1, attempt=0, spec=spec(), **times).model_dump(mode="json")
    document["spec"]["data"] |= {"added": 1}
    assert Run.model_validate(document).spec == spec()
    assert TypeAdapter(StoredSpec).json_schema()["title"] == "RunSpec"
