"""What is said where training waits for images."""

from __future__ import annotations

from dataclasses import replace

import pytest

from service.spec import RunSpec
from trainer.data.admission import FIRST_STEPS, Admission, warning
from trainer.data.advice import Loading
from trainer.data.loader import Batch

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


# 64 images of two views each, made in 3.2 s, of which 0.2 s were spent in reading.
BATCH = Batch((), (), num_images=64, global_images=128, step=0, colours=None, bad=[], read_seconds=0.2, seconds=3.2)


@pytest.mark.parametrize(
    ("num_loaders", "free_cores", "share", "said"),
    [
        (0, 1, 3.2 / (3.2 + 0.768), "about 81 % of the time will probably be spent in waiting"),
        (2, 0, (1.6 - 0.768) / 1.6, "could train on about 83 images/s, and its loader processes deliver 40 at most: all cores are busy"),
        (2, 3, (1.6 - 0.768) / 1.6, "3 cores are free: raise data.num_workers (now 2)"),
        (5, 0, 0.0, None),
    ],
)
def test_after_the_first_steps_a_run_says_how_long_it_will_wait(num_loaders: int, free_cores: int, share: float, said: str | None) -> None:
    """By the quickest of them; the first ones warm up. A run of few steps is let be, however long it waits in each."""
    admission = Admission(num_loaders, free_cores)
    for _ in range(FIRST_STEPS - 1):
        assert admission.step(replace(BATCH, seconds=9.0), 5.0) is None
    loading = admission.step(BATCH, 0.768)
    assert loading is not None
    assert loading.share == pytest.approx(share)
    assert loading.per_loader == pytest.approx(20)
    assert "loads 20 images/s in" in loading.summary()
    message = warning(loading, SPEC, 1000)
    assert (message is None) if said is None else (message is not None and said in message)
    assert warning(loading, SPEC, 10) is None
