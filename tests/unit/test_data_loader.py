"""Batches of views."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.spec import RunSpec
from tests.images import color_folder, noise_folder, plain_color
from trainer.data import loader
from trainer.data.images import index_images
from trainer.data.loader import Batch, ViewLoader, iterate_images, normalise

PLAIN = {"crop_scale": (1.0, 1.0), "horizontal_flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}


def make_spec(root: Path, num_workers: int = 0, batch_size: int = 8, **augmentation: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "data": {"path": str(root), "image_size": 16, "num_workers": num_workers},
            "augmentation": augmentation,
            "optimizer": {"global_batch_size": batch_size},
            "schedule": {"epochs": 2},
        }
    )


def first_batches(spec: RunSpec, number: int, rank: int = 0, world_size: int = 1, start_step: int = 0) -> list[Batch]:
    folder = index_images(Path(spec.data.path))
    return list(islice(ViewLoader(folder, spec, rank, world_size, start_step), number))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.step, a.global_size, a.unreadable) == (b.step, b.global_size, b.unreadable)
        assert torch.equal(a.instances, b.instances)
        assert torch.equal(a.images, b.images)


def test_batches_are_the_same_whatever_the_number_of_loader_processes_and_the_first_step(tmp_path: Path) -> None:
    """Bit for bit: over an epoch's end, in this process, in two others, and started in the middle."""
    root = noise_folder(tmp_path, 29)
    batches = first_batches(make_spec(root), 7)
    assert_same(first_batches(make_spec(root, num_workers=2), 7), batches)
    assert_same(first_batches(make_spec(root), 4, start_step=3), batches[3:])
    assert_same(first_batches(make_spec(root, num_workers=1), 4, start_step=3), batches[3:])


def test_a_view_is_the_same_on_whichever_rank_it_is_made(tmp_path: Path) -> None:
    """The ranks' batches put together are the batch of one rank; each states the size of the whole."""
    spec = make_spec(noise_folder(tmp_path, 29), batch_size=9, views_per_image=2)
    for step, whole in enumerate(first_batches(spec, 5)):
        parts = [first_batches(spec, 1, rank, 3, start_step=step)[0] for rank in range(3)]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.instances for part in parts]), whole.instances)
        assert {part.global_size for part in parts} == {whole.global_size} == {len(whole.instances)}


def test_each_view_comes_with_the_instance_it_is_of(tmp_path: Path) -> None:
    """Each image has a colour of its own; the views of one image are adjacent; an epoch shows each image once."""
    root = color_folder(tmp_path, 30)
    batches = first_batches(make_spec(root, views_per_image=3, **PLAIN), 4)
    for batch in batches:
        assert batch.images.shape == (len(batch.instances), 3, 16, 16)
        assert torch.equal(batch.instances, batch.instances[::3].repeat_interleave(3))
        for view, instance in zip(batch.images, batch.instances.tolist(), strict=True):
            assert tuple(view[:, 8, 8].tolist()) == plain_color(instance)
    assert sorted(torch.cat([batch.instances for batch in batches]).tolist()) == sorted([*range(30)] * 3)


def test_the_views_of_an_image_differ_from_one_another_and_from_epoch_to_epoch(tmp_path: Path) -> None:
    """Else nothing would be learned from seeing an image again."""
    batches = first_batches(make_spec(noise_folder(tmp_path, 8), views_per_image=2), 2)
    views: dict[int, list[Tensor]] = {}
    for batch in batches:
        for view, instance in zip(batch.images, batch.instances.tolist(), strict=True):
            views.setdefault(instance, []).append(view)
    for seen in views.values():
        assert len(torch.stack(seen).unique(dim=0)) == 4


def test_a_damaged_image_becomes_a_grey_one_is_named_and_changes_no_other_view(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The sampling stays as it was; each epoch's batch names the file, the log does so once."""
    spec = make_spec(noise_folder(tmp_path, 16))
    whole = first_batches(spec, 4)
    (tmp_path / "005.png").write_bytes(b"damaged")
    batches = first_batches(spec, 4)
    for before, after in zip(whole, batches, strict=True):
        damaged = after.instances == 5
        assert torch.equal(before.instances, after.instances)
        assert torch.equal(before.images[~damaged], after.images[~damaged])
        assert all(len(view.unique()) == 1 for view in after.images[damaged])  # one grey, of jittered brightness
        assert after.unreadable == ([str(tmp_path / "005.png")] if damaged.any() else [])
    assert [record.message for record in caplog.records] == [f"cannot decode '{tmp_path}/005.png': a grey image stands for it"]


def test_decoded_images_are_kept_only_where_all_may_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room the second epoch opens no file; without, it does; the batches are the same."""
    spec = make_spec(noise_folder(tmp_path, 16))
    opened: list[str] = []
    read = loader.read_image
    monkeypatch.setattr(loader, "read_image", lambda path: opened.append(path) or read(path))
    with_room = first_batches(spec, 4)
    assert len(opened) == 16
    monkeypatch.setattr(loader, "DECODED_BYTES", 15 * 24 * 24 * 3)
    opened.clear()
    assert_same(first_batches(spec, 4), with_room)
    assert len(opened) == 32


def group_leaders() -> set[int]:
    """Our children that lead a process group; other tests' servers among them."""
    children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return {pid for pid in children if os.getpgid(pid) == pid}


def test_loader_processes_have_their_own_process_group_and_end_with_the_iteration(tmp_path: Path) -> None:
    """A SIGTERM to the job's group asks for a last checkpoint; the loader must live to serve it, and not for longer."""
    spec = make_spec(noise_folder(tmp_path, 16), num_workers=1)
    before = group_leaders()
    batches = iter(ViewLoader(index_images(tmp_path), spec, 0, 1, 0))
    next(batches)
    loaders = sorted(group_leaders() - before)
    assert len(loaders) == 1
    batches.close()
    with pytest.raises(ProcessLookupError):
        os.getpgid(loaders[0])


def test_evaluation_views_come_in_the_order_asked_for(tmp_path: Path) -> None:
    """With repeats, with a smaller last batch, and the same from another process."""
    folder = index_images(color_folder(tmp_path, 12))
    order = [7, 0, 3, 3, 11, 2, 5]
    for num_workers in (0, 1):
        batches = list(iterate_images(folder, order, 16, 3, num_workers))
        assert [len(images) for images, _ in batches] == [3, 3, 1]
        assert torch.cat([indices for _, indices in batches]).tolist() == order
        colors = torch.cat([images for images, _ in batches])[:, :, 0, 0].tolist()
        assert [tuple(color) for color in colors] == [plain_color(i) for i in order]


def test_normalisation_takes_the_mean_and_divides_by_the_standard_deviation_per_channel() -> None:
    """Oracle: float64."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), dtype=np.uint8))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.5)
    expected = (images.double() / 255 - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]
    torch.testing.assert_close(normalise(images, mean, std).double(), expected, rtol=0, atol=2e-6)
