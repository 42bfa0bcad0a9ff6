"""What ranks conclude together from the images that they cannot use, on real gloo processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from service.spec import RunSpec
from tests.distributed.job import spec_of
from tests.distributed.launch import on_ranks
from tests.images import indexed, noise_folder
from trainer import bad_images
from trainer.bad_images import BadImages
from trainer.beats import Beats
from trainer.classifier import build_classifier
from trainer.data.images import Images
from trainer.data.tasks import Bad
from trainer.encoder import build_encoder
from trainer.errors import TrainerError
from trainer.prior import first_pass
from trainer.process import Process
from trainer.spool import EventSpool, NullSpool
from trainer.watch import Watch

pytestmark = pytest.mark.distributed


def what_is_concluded(directory: Path, images: Images, spec: RunSpec, third: Images) -> list[tuple[str, list[str]]]:
    """(how it ends, what is listed then) for one thing after another that befalls rank 1 alone; a prior over `third` at last."""
    bad_images.PATIENCE_SECONDS, bad_images.POLL_SECONDS = 0.4, 0.1
    process = Process(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    spool = EventSpool(directory / "events") if process.is_first else NullSpool()
    watch = Watch(process, Beats(directory / f"beat-{process.rank}"), directory / "stop")
    found = []

    def attempt(of: Images, spec: RunSpec) -> BadImages:
        return BadImages(of.index, spec, process, directory / "quarantine", spool, watch)

    def check(current: BadImages, cause: str, rows: range, *, away: bool) -> None:
        if process.is_first and away:
            Path(images.index.root).rename(directory / "elsewhere")
        dist.barrier()
        current.count(40, [Bad(row, cause, cause) for row in rows] if process.rank == 1 else [])
        conclude(current.check)
        if process.is_first and away:
            (directory / "elsewhere").rename(images.index.root)
        dist.barrier()

    def conclude(call: object) -> None:
        assert callable(call)
        try:
            call()
            ended = "it goes on"
        except TrainerError as error:
            ended = f"{error.code}: {error}"
        listed = (directory / "quarantine").read_text().splitlines() if (directory / "quarantine").exists() else []
        found.append((ended, [json.loads(line)["cause"] for line in listed]))
        dist.barrier()

    tolerant = spec.model_copy(update={"data": spec.data.model_copy(update={"max_bad_share": 1.0})})
    first = attempt(images, tolerant)
    check(first, "truncated", range(1), away=False)
    check(first, "missing", range(1, 3), away=True)  # too few to ask
    if process.is_first:
        for row in range(3, 44):
            (Path(images.index.root) / images.name(row)).unlink()
    dist.barrier()
    check(first, "missing", range(3, 44), away=False)  # a sudden many, but there are others
    check(first, "timeout", range(50, 91), away=True)
    check(attempt(images, spec), "read error", range(50, 91), away=False)  # it was away, and is back
    check(attempt(images, spec), "missing", range(3, 15), away=False)  # of 80
    encoder, classifier = build_encoder(spec), build_classifier(spec, len(third), process.device)
    conclude(lambda: first_pass(encoder, classifier, third, spec, process, watch, attempt(third, spec)))
    for _ in range(2):
        first.warn_of_evaluation({f"{name}.png": "empty" for name in "abcd"})
    return found


def test_storage_that_is_away_is_told_from_damaged_images_alike_on_all_ranks(tmp_path: Path) -> None:
    """The first may be tried again, and what it made unreadable is off the list; the second ends the run, in the prior already."""
    images = indexed(noise_folder(tmp_path / "images", 100))
    for i in range(0, 60, 3):
        (noise_folder(tmp_path / "third", 60) if i == 0 else tmp_path / "third").joinpath(f"{i:03d}.png").write_bytes(b"")
    arguments = tmp_path, images, spec_of(tmp_path / "images"), indexed(tmp_path / "third")
    first, other = on_ranks(2, tmp_path, what_is_concluded, *arguments)
    for (ended, listed), (ended_there, _) in zip(first, other, strict=True):
        assert ended.partition(":")[0] == ended_there.partition(":")[0], (ended, ended_there, listed)
    ends, lists = zip(*first, strict=True)
    assert [end.partition(":")[0] for end in ends] == ["it goes on"] * 3 + ["storage", "storage", "bad_data", "bad_data"]
    assert lists[1] == ["truncated", "missing", "missing"]
    assert len(lists[2]) == 44
    assert lists[3] == ["truncated"]
    assert str(tmp_path / "images") in ends[3]
    assert "look whether the storage is there and mounted" in ends[3]
    assert "41 timeout" in other[3][0]
    assert "and now can be" in ends[4]
    assert "12 of the 80 images" in ends[5]
    assert "20 of the 60 images" in ends[6]
    warnings = [json.loads(line)["message"] for line in (tmp_path / "events").read_text().splitlines()]
    assert sum("waits for it" in warning for warning in warnings) == 1
    (of_evaluation,) = [warning for warning in warnings if "of the evaluation" in warning]
    assert of_evaluation.startswith("a.png (empty), b.png (empty), c.png (empty) and 1 more of the evaluation cannot be used")
