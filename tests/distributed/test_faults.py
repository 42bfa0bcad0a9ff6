"""No image and no storage ends a run: whole jobs, and their loader, over damaged files on a file system with faults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import torch

from tests import faulty_files
from tests.distributed.job import Job, failure, spec_of, weights
from tests.images import kept, noise
from trainer.data.images import Images, index_images
from trainer.data.loader import Batch, ViewLoader

pytestmark = pytest.mark.distributed

NUM_IMAGES = 200
DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "garbage": ("damaged", lambda data: data[:900] + np.random.default_rng(0).bytes(600) + data[1500:]),
    "garbled": ("undecodable", lambda data: data[:900] + bytes(600) + data[1500:]),
    "truncated": ("truncated", lambda data: data[: len(data) // 2]),
    "empty": ("empty", lambda data: b""),
    "short": ("truncated", lambda data: data),
    "broken": ("read error", lambda data: data),
    "hung": ("timeout", lambda data: data),
    "vanished": ("missing", lambda data: data),
    "renamed": ("missing", lambda data: data),
    "flaky": ("", lambda data: data),
    "slow": ("", lambda data: data),
}
PER_KIND = NUM_IMAGES // 100


def damaged_pile(root: Path, *, is_clean: bool = False) -> Path:
    """1 % of each kind of DAMAGE among sound images; with `is_clean` the same images before that."""
    names = [f"{kind}-{i}" for kind in DAMAGE for i in range(PER_KIND)]
    names += [f"{'sound' if i % 2 else 'also'}-{i:03d}" for i in range(NUM_IMAGES - len(names))]
    root.mkdir()
    for seed, name in enumerate(names):
        kind = name.partition("-")[0]
        suffix = ".png" if kind == "garbled" else ".jpg"
        data = cv2.imencode(suffix, noise(seed, 40, 40), [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else [])[1].tobytes()
        (root / (name + suffix)).write_bytes(data if is_clean or kind not in DAMAGE else DAMAGE[kind][1](data))
    return root


def rename(pile: Path) -> None:
    for file in pile.glob("renamed-*"):
        file.rename(file.with_name(f"new-{file.name}"))


def test_a_run_survives_an_outage_of_its_storage_and_every_kind_of_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the prior the storage is away: that attempt may be tried again and lists nothing. The next one ends well, with each damaged image
    listed with its cause, also those that vanish in the middle of it, and warned of."""
    pile, run = damaged_pile(tmp_path / "pile"), tmp_path / "run"
    monkeypatch.setenv("PYTHONPATH", faulty_files.install(tmp_path / "site"))
    fsspec.register_implementation("faulty", faulty_files.FaultyFiles, clobber=True)
    spec = spec_of(
        pile,
        data={"path": f"faulty://{pile}", "num_workers": 1, "read_timeout_seconds": 1.0, "max_bad_share": 0.5, "cache_gib": 0.0},
    )
    index_images(spec.data.path, run / "index/images")
    rename(pile)
    pile.rename(tmp_path / "away")
    outage = Job(spec, run, 1)
    outage.until(lambda: any("waits for it" in event["message"] for event in outage.events("warned")), "it notices the outage")
    (tmp_path / "away").rename(pile)
    told = failure(outage)
    assert told["code"] == "storage", told
    assert f"'faulty://{pile}'" in told["message"]
    assert not run.joinpath("quarantine.jsonl").exists()

    job = Job(spec, run, 2)
    job.until(lambda: any(event["phase"] == "training" for event in job.events("phase")), "the prior is over")
    for file in pile.glob("vanished-*"):
        file.unlink()
    assert job.wait() == 0, job.logs()
    assert weights(run)
    listed = {entry["name"]: entry["cause"] for entry in map(json.loads, run.joinpath("quarantine.jsonl").read_text().splitlines())}
    expected = {f"{kind}-{i}": cause for kind, (cause, _) in DAMAGE.items() if cause for i in range(PER_KIND)}
    found = {name.rpartition(".")[0]: cause for name, cause in listed.items()}
    # On a machine that is busy otherwise a second may pass over a sound file as well.
    assert {name: cause for name, cause in found.items() if cause != "timeout" or name in expected} == expected
    warnings = [event["message"] for event in job.events("warned")]
    assert any("cannot be used, and others take their place" in message for message in warnings)


def test_views_of_sound_images_are_those_of_a_sound_pile(tmp_path: Path) -> None:
    """Of every image that can be read, after an error that passes too, the same pixels as without any fault."""
    pile, clean = damaged_pile(tmp_path / "pile"), damaged_pile(tmp_path / "clean", is_clean=True)
    fsspec.register_implementation("faulty", faulty_files.FaultyFiles, clobber=True)
    faults = {"num_workers": 0, "read_timeout_seconds": 2.0, "cache_gib": 0.0}
    images = index_images(f"faulty://{pile}", tmp_path / "index")
    rename(pile)
    found = epoch(images, spec_of(pile, data={"path": f"faulty://{pile}", **faults}))
    expected = epoch(index_images(clean, tmp_path / "clean-index"), spec_of(clean))
    assert sum(len(batch.bad) for batch in found) >= 8 * PER_KIND
    num_same = 0
    for batch, sound in zip(found, expected, strict=True):
        is_same = batch.classes[0] == sound.classes[0]
        assert torch.equal(batch.views[0][is_same], sound.views[0][is_same])
        num_same += int(is_same.sum())
    assert num_same == NUM_IMAGES - 8 * PER_KIND  # all but vanished, flaky and slow ones, which are there here


def epoch(images: Images, spec: object) -> list[Batch]:
    batches = iter(ViewLoader(images, spec, 0, 1, 0))  # type: ignore[arg-type]
    return [kept(next(batches)) for _ in range(NUM_IMAGES // 20)]
