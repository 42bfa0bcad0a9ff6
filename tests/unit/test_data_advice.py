"""What is said where training waits for images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.spec import RunSpec
from trainer.data.advice import Loading

SPEC = RunSpec.model_validate({"data": {"path": "/data/photos", "image_size": 224}, "schedule": {"epochs": 1}})
WAITING = Loading(num_images=1000, seconds=10.0, waited=5.0, load_seconds=18.0, read_seconds=1.0, num_loaders=2, free_cores=0)


@pytest.mark.parametrize(
    "quiet", [replace(WAITING, waited=1.9), replace(WAITING, num_loaders=0, waited=4.9), replace(WAITING, num_images=0)]
)
def test_little_waiting_is_let_be(quiet: Loading) -> None:
    """Where the rank loads for itself half of the time may go into it."""
    assert quiet.advice(SPEC) is None


@pytest.mark.parametrize(
    ("loading", "remedy"),
    [
        (WAITING, "all cores are busy: pack the images in a smaller size (`millionway pack /data/photos --size 258`)"),
        (replace(WAITING, free_cores=3), "3 cores are free: raise data.num_workers (now 2)"),
        (replace(WAITING, read_seconds=16.2, free_cores=3), "90 % of it is reading: raise data.num_workers (now 2), or pack (`millionway"),
    ],
)
def test_what_the_run_needs_and_what_the_loader_delivers_are_said_with_the_remedy(loading: Loading, remedy: str) -> None:
    """1000 images in the 5 s in which the rank trained; 1000 in 18 s of two processes."""
    said = loading.advice(SPEC)
    assert said is not None
    assert "50 % of the time" in said
    assert "could train on 200 images/s, and its loader processes deliver 111 at most" in said
    assert remedy in said
