"""Which checkpoints there are: found, checked, kept and removed. What is in them is trainer/checkpoint.py's business."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.layout import write_whole
from service.spec import RunSpec, stored_spec
from trainer.durable import sha256
from trainer.errors import BadData
from trainer.fence import Fence

FORMAT = 1
MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """One complete checkpoint."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def knn(self) -> float | None:
        knn = self.manifest["knn"]
        return None if knn is None else float(knn)

    @property
    def world_size(self) -> int:
        """Ranks that wrote it."""
        return int(self.manifest["world_size"])

    @property
    def spec(self) -> RunSpec:
        return stored_spec(json.dumps(self.manifest["spec"]))

    @property
    def num_bytes(self) -> int:
        return sum(file["bytes"] for file in self.manifest["files"].values())


def list_checkpoints(directory: Path) -> list[Saved]:
    """Complete checkpoints, oldest first. What a killed writer left has no final name and is not seen."""
    return [saved for path in sorted(directory.glob("step-*")) if (saved := _read_manifest(path))]


def newest_checkpoint(directory: Path) -> Saved | None:
    """The newest checkpoint whose every file has its checksum. A damaged one is renamed, with a warning. One rank calls."""
    for saved in reversed(list_checkpoints(directory)):
        damaged = _damaged_files(saved)
        if not damaged:
            return saved
        log.warning("checkpoint %s is passed over: %s differ from their checksums", saved.path, ", ".join(damaged))
        saved.path.rename(saved.path.with_name(f".{saved.path.name}.damaged"))  # else it would count among those to keep
    return None


def open_checkpoint(path: Path) -> Saved:
    """The checkpoint at `path`, for a run that starts from it. Raises BadData where it is not whole."""
    saved = _read_manifest(path)
    if saved is None:
        raise BadData(
            f"{str(path)!r} is no checkpoint to start from: it has no readable {MANIFEST} of format {FORMAT}: name one that is listed"
        )
    if damaged := _damaged_files(saved):
        raise BadData(f"checkpoint {str(path)!r} is damaged: {', '.join(damaged)} differ from their checksums: start from another")
    return saved


def read_pins(path: Path) -> frozenset[int]:
    """Steps of checkpoints that are never removed (service.layout.RunDir.pins). Raises ValueError where the file is something else."""
    try:
        return frozenset(map(int, json.loads(path.read_text())))
    except FileNotFoundError:
        return frozenset()
    except TypeError as error:
        raise ValueError(f"{str(path)!r} holds no list of steps: {error}") from None


def old_checkpoints(directory: Path, keep_last: int, keep_best: bool, pinned: Collection[int]) -> list[Path]:
    """All but the newest `keep_last`, the `pinned` steps and, with `keep_best`, the one with the highest kNN accuracy."""
    saved = list_checkpoints(directory)
    keep = {s.path for s in saved[-keep_last:]} | {s.path for s in saved if s.step in pinned}
    scored = [s for s in saved if s.knn is not None]
    if keep_best and scored:
        keep.add(max(scored, key=lambda s: (s.knn, s.step)).path)
    return [s.path for s in saved if s.path not in keep]


def remove_checkpoints(directory: Path, old: Collection[Path], fence: Fence) -> None:
    """One rank calls. Raises Fenced before it removes anything that a newer attempt may start from."""
    for left in directory.glob(".step-*.removed"):  # by attempts that were killed
        shutil.rmtree(left, ignore_errors=True)
    for path in old:
        doomed = path.with_name(f".{path.name}.removed")  # a reader sees it whole or not at all
        fence.check()
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def record_knn(saved: Saved, knn: float) -> None:
    """Note the accuracy of an evaluation that was made after the checkpoint was written. One rank calls."""
    write_whole(saved.path / MANIFEST, json.dumps({**saved.manifest, "knn": knn}, indent=1))


def _read_manifest(path: Path) -> Saved | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return Saved(path, manifest) if manifest.get("format") == FORMAT else None


def _damaged_files(saved: Saved) -> list[str]:
    return [name for name, about in saved.manifest["files"].items() if not _is_whole(saved.path / name, about["sha256"])]


def _is_whole(path: Path, expected: str) -> bool:
    try:
        return sha256(path) == expected
    except OSError:
        return False
