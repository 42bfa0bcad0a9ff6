"""Messages between versions: the API may be newer than a worker or a command line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from service.protocol import Drain, Fork, Offer, Poll, PollReply, RunPatch
from service.runs import Run
from service.spec import StoredSpec
from tests.service.documents import spec


def test_an_offer_of_a_newer_api_is_understood() -> None:
    """What it added to the message and to the specification, at any depth, is ignored; what is wrong is still refused."""
    fields: dict[str, Any] = {"node_rank": 0, "num_nodes": 1, "ranks_per_node": 2, "slots": [0, 1], "master_address": "a", "pins": []}
    offer = Offer(run_id="r", attempt=1, spec=spec(), **fields)
    document = PollReply(lease_seconds=15, offers=[offer]).model_dump(mode="json") | {"added": 0}
    document["offers"][0] |= {"added": 1}
    document["offers"][0]["spec"] |= {"added": 1}
    document["offers"][0]["spec"]["classifier"] |= {"added_too": 2}
    assert PollReply.model_validate(document).offers == [offer]
    document["offers"][0]["spec"]["classifier"] |= {"temperature": -1}
    with pytest.raises(ValidationError, match="temperature"):
        PollReply.model_validate(document)


def test_a_run_of_a_newer_api_is_understood() -> None:
    """As an offer is: both hold a stored specification, and its schema stays that of RunSpec."""
    times = {"created_at": 1.0, "updated_at": 1.0}
    run = Run(id="r", name="n", owner="alice", status="queued", reason="", version=1, attempt=0, spec=spec(), **times)
    document = run.model_dump(mode="json") | {"added": 1}
    document["spec"]["data"] |= {"added": 1}
    assert Run.model_validate(document) == run
    assert TypeAdapter(StoredSpec).json_schema()["title"] == "RunSpec"


def test_a_poll_of_an_older_worker_is_understood() -> None:
    """What came to the message later has a default."""
    said = {"incarnation": "0123456789abcdef", "host": "h", "address": "a", "slots": 2, "device": "cpu", "storage": "nfs", "number": 1}
    poll = Poll.model_validate(said)
    assert (poll.held, poll.leaving, poll.shared, poll.wait_seconds) == ([], False, False, 0.0)


@pytest.mark.parametrize(
    ("request_type", "document"),
    [(RunPatch, {"prioritty": 1}), (RunPatch, {"priority": 101}), (Drain, {"mode": "now"}), (Fork, {"step": -1}), (Fork, {"specs": {}})],
)
def test_what_a_person_asks_wrongly_is_refused(request_type: type[RunPatch | Drain | Fork], document: dict[str, object]) -> None:
    """A mistyped field is not passed over: nothing would be changed, silently."""
    with pytest.raises(ValidationError):
        request_type.model_validate(document)
