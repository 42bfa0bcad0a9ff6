"""What is checked of a submission beyond its specification: what this release can place, and what is on the disk.

Blocks on the file system: call it from a thread.
"""

from __future__ import annotations

import difflib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath

from service.errors import FieldError, InvalidSpec
from service.roots import climbs, inside
from service.spec import RunSpec, check_fits_dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FILE_SUFFIXES = (".txt", ".csv", ".parquet", ".tar")
"""Of single files that hold images, or name them."""
SHARD_SUFFIXES = (".parquet", ".tar")
"""Of files that a folder may hold in the place of images."""
OUR_ARGS = frozenset(
    {"num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "features_only", "cache_dir"}
)
"""Arguments of timm.create_model that the specification's other fields decide, or that would load foreign weights."""
SCAN_SECONDS = 3.0
"""A folder that takes longer to look through is let in; the job counts its images in any case."""


def admit(spec: RunSpec, *, shared_files: bool, roots: Sequence[str] = ()) -> None:
    """Raises InvalidSpec with everything that is wrong. `shared_files`: this process sees the worker's file system; `roots`: the folders
    in which the paths must lie, any if there are none. Of a path elsewhere it is not said whether it exists."""
    errors = [*_backbone(spec), *_paths(spec, roots, shared_files)]
    if shared_files and not errors:
        errors = [*_data_folder(spec), *_labelled_folders(spec)]
    if errors:
        raise InvalidSpec(errors)


@cache
def backbone_names() -> frozenset[str]:
    """The architectures of timm that the trainer takes; empty where the list is not installed."""
    names = files("service").joinpath("backbones.txt")
    return frozenset(names.read_text().split()) if names.is_file() else frozenset()


def is_url(path: str) -> bool:
    """Whether the data are elsewhere. An address of this machine's own files is none: `roots` could not hold it."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isalnum() and scheme not in ("file", "local")


def _backbone(spec: RunSpec) -> Iterator[FieldError]:
    name, known = spec.backbone.name, backbone_names()
    if known and name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else "see service/backbones.txt for the names, e.g. 'resnet50'"
        yield FieldError("backbone.name", name, f"backbone.name {name!r} is no timm architecture known here: {remedy}")
    for arg in sorted(OUR_ARGS & spec.backbone.args.keys()):
        message = f"backbone.args has {arg}: other fields of the specification decide it, and no foreign weights are loaded: leave it out"
        yield FieldError(f"backbone.args.{arg}", spec.backbone.args[arg], message)


def _named_paths(spec: RunSpec) -> dict[str, str]:
    named = {
        "data.path": spec.data.path,
        "data.index": spec.data.index,
        "evaluation.labelled": spec.evaluation.labelled,
        "evaluation.queries": spec.evaluation.queries,
    }
    return {field: path for field, path in named.items() if path is not None}


def _paths(spec: RunSpec, roots: Sequence[str], shared_files: bool) -> Iterator[FieldError]:
    for field, path in _named_paths(spec).items():
        if is_url(path) and field != "data.index":
            if roots and not any(is_url(root) and f"{path}/".startswith(f"{root.rstrip('/')}/") for root in roots):
                yield FieldError(
                    field, path, f"{field} is {path!r}: it leads out of {' or '.join(roots)}, where data must lie: name data there"
                )
            elif climbs(path, in_url=True):
                yield FieldError(field, path, f"{field} is {path!r}: give the address without ..")
        elif not PurePosixPath(path).is_absolute():
            yield FieldError(field, path, f"{field} is {path!r}: give the absolute path, as the worker sees it")
        elif not inside(path, roots, on_disk=shared_files):
            allowed = " or ".join(roots)
            yield FieldError(field, path, f"{field} is {path!r}: it leads out of {allowed}, where data must lie: name a folder below")


def _data_folder(spec: RunSpec) -> Iterator[FieldError]:
    path = spec.data.path
    if is_url(path) or (path.lower().endswith(FILE_SUFFIXES) and Path(path).is_file()):
        return  # the job looks into it
    if fault := _unreadable(path):
        yield FieldError("data.path", path, f"data.path is {path!r}: {fault}")
        return
    enough = max(spec.classifier.hardest_k + 1, spec.optimizer.global_batch_size)
    found, complete = count_images(Path(path), enough)
    if not complete:
        return
    if found == 0:
        suffixes = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
        yield FieldError(
            "data.path", path, f"data.path is {path!r}: no image ({suffixes}) in it or below it: name the folder with the images"
        )
        return
    try:
        check_fits_dataset(spec, found)
    except ValueError as error:
        message = str(error)
        field = message.split(" ", 1)[0]
        section, key = field.split(".")
        yield FieldError(field, getattr(getattr(spec, section), key), message)


def _labelled_folders(spec: RunSpec) -> Iterator[FieldError]:
    for field, path in _named_paths(spec).items():
        if field in ("data.path", "data.index") or is_url(path) or (path.lower().endswith(FILE_SUFFIXES) and Path(path).is_file()):
            continue
        if fault := _unreadable(path):
            yield FieldError(field, path, f"{field} is {path!r}: {fault}")
        elif not any(map(_gives_labels, Path(path).iterdir())):
            yield FieldError(field, path, f"{field} is {path!r}: it has no sub-folders: it needs one with images per class")


def _gives_labels(entry: Path) -> bool:
    return not entry.name.startswith(".") and (entry.is_dir() or entry.suffix.lower() in SHARD_SUFFIXES)


def _unreadable(path: str) -> str | None:
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # noqa: PTH116 - Path.exists hides some errors and raises others
    except (FileNotFoundError, NotADirectoryError):
        return "no such folder: correct the path, or make the folder"
    except PermissionError:
        return "this process may not look into a folder above it: correct its permissions"
    except (OSError, ValueError) as error:
        return f"no path that a folder can have ({getattr(error, 'strerror', None) or error}): correct it"
    if not is_folder:
        return f"a file, and none of {', '.join(FILE_SUFFIXES)}: name the folder with the images"
    if not os.access(path, os.R_OK | os.X_OK):
        return "not readable by this process: correct its permissions"
    return None


def count_images(folder: Path, enough: int) -> tuple[int, bool]:
    """Images in `folder` and below, and whether that is all: the count ends at `enough`, after SCAN_SECONDS, and where a folder
    cannot be listed.

    Counts what the trainer takes: hidden names are skipped, a folder reached twice through links counts once.
    """
    found, deadline = 0, time.monotonic() + SCAN_SECONDS
    visited: set[tuple[int, int]] = set()
    pending = [os.fspath(folder)]
    while pending:
        current = pending.pop()
        try:
            status = os.stat(current)  # noqa: PTH116 - millions of these
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if found >= enough or time.monotonic() > deadline:
                        return found, False
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        pending.append(entry.path)
                    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                        found += entry.is_file()
                    elif entry.name.lower().endswith(SHARD_SUFFIXES):
                        return found, False  # the images are perhaps in those
        except OSError:
            return found, False
    return found, found < enough
