"""What is to be known of a pile of images before a run, and what to set for it."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from service.layout import write_whole
from trainer.data.duplicates import Groups, group_images, save_groups
from trainer.data.headers import FORMATS
from trainer.data.images import of_index
from trainer.data.index import Index, Skipped, evenly_spaced
from trainer.data.inspect import Scan, scan_images
from trainer.data.inspect_page import page

VIEW_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 384, 512)
"""Common sides of views, in pixels."""
_MOST_NAMES = 1000
"""Of unreadable images of one cause in the JSON file."""
_MOST_GROUPS = 50


@dataclass(frozen=True)
class Report:
    """Numbers for people, and the rows of the images to show."""

    about: dict[str, Any]
    """What inspect.json holds."""
    pictures: dict[str, list[list[int]]]
    """Rows of the index, in groups, by what they show."""


def inspect_images(
    index: Index,
    *,
    limit: int | None = None,
    channels: int = 3,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at all images, or at most `limit` evenly spaced. The groups of all are kept beside the index for runs to come.

    Raises BadData where no worker process can be started.
    """
    every = of_index(index)
    chosen = every.limited(limit)
    begun = time.monotonic()
    scan = scan_images(index, chosen.rows(np.arange(len(chosen))), channels=channels, num_workers=num_workers, progress=progress)
    seconds = time.monotonic() - begun
    groups = group_images(index, scan, num_workers=num_workers)
    if len(chosen) == len(every):
        save_groups(index, scan, groups)
    made = report(index, scan, groups)
    speed = {"images_per_second": round(len(scan.row_n) / max(1e-9, seconds), 1), "num_processes": max(1, num_workers)}
    return replace(made, about=made.about | speed)


def write_report(index: Index, made: Report, directory: Path) -> tuple[Path, Path]:
    """Write inspect.html and inspect.json. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / "inspect.html", directory / "inspect.json"
    write_whole(paths[0], page(index, made.about, made.pictures))
    write_whole(paths[1], json.dumps(made.about, indent=1))
    return paths


def summary(about: dict[str, Any]) -> list[str]:
    """The report in a few lines."""
    duplicates, sizes, suggested = about["duplicates"], about["sizes"], about["suggested"]
    formats = ", ".join(f"{count:,} {name}" for name, count in about["formats"].items())
    lines = [f"{about['num_inspected']:,} of {about['num_images']:,} images inspected: {formats or 'none can be read'}"]
    lines.append(
        f"{about['images_per_second']:,.0f} images/s in {about['num_processes']} processes: reading, decoding at full size and hashing"
    )
    lines += [f"unreadable: {found['count']:,} {cause}, e.g. {found['examples'][0]}" for cause, found in about["unreadable"].items()]
    if sizes:
        smallest, median, largest = ("x".join(map(str, sizes[name])) for name in ("smallest", "median", "largest"))
        lines.append(f"pixels: {smallest} to {largest}, median {median}; mean {about['mean']}, std {about['std']}")
    lines.append(
        f"duplicates: {duplicates['num_images']:,} images in {duplicates['num_groups']:,} groups, "
        f"{duplicates['num_wrong_negatives']:,} pairs that instance classification would tell apart"
    )
    if suggested:
        lines.append("suggested: " + ", ".join(f"data.{name}: {value}" for name, value in suggested.items()))
    return lines


def report(index: Index, scan: Scan, groups: Groups) -> Report:
    record_n = scan.record_n[scan.readable_n]
    mean, std = scan.mean_std()
    about: dict[str, Any] = {
        "data": index.root,
        "kind": index.kind,
        "index": str(index.directory),
        "num_images": len(of_index(index)),
        "num_inspected": len(scan.row_n),
        "num_readable": len(record_n),
        "num_bytes": int(record_n["num_bytes"].sum()),
        "formats": {FORMATS[number]: count for number, count in _counts(record_n["format"]).items()},
        "channels": {str(number): count for number, count in _counts(record_n["channels"]).items()},
        "bits_per_channel": {str(number): count for number, count in _counts(record_n["depth"]).items()},
        "num_rotated": int((record_n["orientation"] > 1).sum()),
        "num_plain": int(record_n["plain"].sum()),
        "mean": [round(float(value), 4) for value in mean] if len(record_n) else [],
        "std": [round(float(value), 4) for value in std] if len(record_n) else [],
        "sizes": _sizes(record_n),
        "labels": _labels(index, scan.row_n),
        "skipped": _by_cause(index.skipped),
        "unreadable": _unreadable(index, scan),
        "duplicates": _duplicates(index, scan, groups),
    }
    about["suggested"] = _suggested(about)
    return Report(about, _pictures(scan, groups))


def _counts(values: np.ndarray) -> dict[int, int]:
    found, count = np.unique(values, return_counts=True)
    return dict(sorted(zip(found.tolist(), count.tolist(), strict=True), key=lambda pair: -pair[1]))


def _sizes(record_n: np.ndarray) -> dict[str, Any]:
    if not len(record_n):
        return {}
    width, height = record_n["width"].astype(np.int64), record_n["height"].astype(np.int64)
    order = np.argsort(width * height, kind="stable")
    shorter = np.minimum(width, height)
    distinct, count = np.unique(width << 32 | height, return_counts=True)
    common = np.argsort(-count, kind="stable")[:10]
    return {
        "smallest": [int(width[order[0]]), int(height[order[0]])],
        "median": [int(width[order[len(order) // 2]]), int(height[order[len(order) // 2]])],
        "largest": [int(width[order[-1]]), int(height[order[-1]])],
        "median_shorter_side": int(np.sort(shorter)[len(shorter) // 2]),
        "num_distinct": len(distinct),
        "most_common": [[int(distinct[i] >> 32), int(distinct[i] & 0xFFFFFFFF), int(count[i])] for i in common],
        "num_smaller_than": {str(size): int((shorter < size).sum()) for size in VIEW_SIZES},
        "octaves": [[*pair, count] for pair, count in sorted(Counter(zip(_octave(width), _octave(height), strict=True)).items())],
    }


def _octave(side: np.ndarray) -> list[int]:
    """The power of two that is not above it."""
    return (1 << np.floor(np.log2(side)).astype(np.int64)).tolist()  # type: ignore[no-any-return]


def _labels(index: Index, row_n: np.ndarray) -> dict[str, int]:
    if index.label_n is None:
        return {}
    return {index.label_names[i] if i >= 0 else "(none)": count for i, count in _counts(index.label_n[row_n]).items()}


def _by_cause(skipped: Skipped) -> dict[str, Any]:
    return {cause: {"count": count, "examples": skipped.examples[cause]} for cause, count in sorted(skipped.counts.items())}


def _unreadable(index: Index, scan: Scan) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row, cause, message in scan.failed:
        of_cause = found.setdefault(cause, {"count": 0, "examples": [], "names": []})
        of_cause["count"] += 1
        if len(of_cause["examples"]) < 10:
            of_cause["examples"].append(f"{index.full_name(row)}: {message}")
        if len(of_cause["names"]) < _MOST_NAMES:
            of_cause["names"].append(index.full_name(row))
    return dict(sorted(found.items()))


def _members(group_n: np.ndarray) -> list[np.ndarray]:
    """The numbers in each group of at least two, the largest group first."""
    order = np.argsort(group_n, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group_n[order])) + 1) if len(order) else []
    return sorted((part for part in parts if len(part) > 1), key=lambda part: -len(part))


def _duplicates(index: Index, scan: Scan, groups: Groups) -> dict[str, Any]:
    members = _members(groups.all_n)
    sizes = np.array([len(part) for part in members], np.int64)
    own = np.arange(len(scan.row_n))
    extra = [int((group_n != own).sum()) for group_n in (groups.same_bytes_n, groups.same_pixels_n, groups.all_n)]
    label_n = index.label_n
    disagree = 0 if label_n is None else sum(len(set(label_n[scan.row_n[part]].tolist())) > 1 for part in members)
    return {
        "num_groups": len(members),
        "num_images": int(sizes.sum()),
        "share_of_images": float(sizes.sum() / max(1, len(scan.row_n) - len(scan.failed))),
        "largest_group": int(sizes.max(initial=0)),
        "num_wrong_negatives": int((sizes * (sizes - 1) // 2).sum()),
        "num_extra_same_bytes": extra[0],
        "num_extra_same_pixels": extra[1] - extra[0],
        "num_extra_near": extra[2] - extra[1],
        "num_groups_of_several_labels": disagree,
        "groups": [[index.full_name(int(row)) for row in scan.row_n[part[:20]]] for part in members[:_MOST_GROUPS]],
    }


def _suggested(about: dict[str, Any]) -> dict[str, Any]:
    """Of the section data of a specification."""
    if not about["num_readable"]:
        return {}
    fitting = [size for size in VIEW_SIZES if size <= min(224, about["sizes"]["median_shorter_side"])]
    return {
        "image_size": fitting[-1] if fitting else VIEW_SIZES[0],
        "mean": [round(value, 3) for value in about["mean"]],
        "std": [max(0.001, round(value, 3)) for value in about["std"]],
        "duplicates": "share" if about["duplicates"]["num_groups"] else "keep",
    }


def _pictures(scan: Scan, groups: Groups) -> dict[str, list[list[int]]]:
    readable = np.flatnonzero(scan.readable_n)
    record_n = scan.record_n[readable]
    by_area = readable[np.argsort(record_n["width"].astype(np.int64) * record_n["height"], kind="stable")]
    chosen = np.random.default_rng(0).permutation(len(readable))[:32]
    members = _members(groups.all_n)
    shown = [members[i] for i in evenly_spaced(len(members), 24)]  # the largest and the usual
    return {
        "duplicates": [scan.row_n[part[:6]].tolist() for part in shown],
        "random": [scan.row_n[readable[np.sort(chosen)]].tolist()],
        "smallest": [scan.row_n[by_area[:8]].tolist()],
        "largest": [scan.row_n[by_area[::-1][:8]].tolist()],
    }
