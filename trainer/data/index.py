"""The index of a pile of images: where the bytes of each are, in memory-mapped files that all ranks of a node share.

    index.json       what was indexed, how many, what was skipped and why, and the SHA-256 that names the list
    names.bin        names of the images one after another: paths relative to the root, or member names
    name_end.npy     [N] uint64, where each name ends
    container.npy    [N] uint32, number of the tar or parquet file in index.json; of those alone, as the next two
    offset.npy       [N] uint64, first byte in the tar, or row in the parquet file
    length.npy       [N] uint64, bytes; 0 in a parquet file, whose reader finds out
    label.npy        [N] int32, number of the label in index.json, -1 without; where folder names or a column give labels
    gone.npy         [N] bool, images that were there once; where there are any

The position of an image is its id, and it keeps it: an index that is brought up to date has new images at its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap  # which reads no pickle

from service.layout import write_whole
from trainer.durable import sync
from trainer.errors import BadData

FOLDER_INDEX = ".millionway-index"
"""Below a folder of images, by `millionway index`; hidden, so that it is none of the images."""
VERSION = 1
_EXAMPLES = 10
_RACY_NS = 2 * 10**9
"""A folder that changed so shortly before it was listed may have changed again within the same tick of its clock."""
_OPTIONAL = ("container", "offset", "length", "label", "gone")


@dataclass
class Skipped:
    """What was found and is no image, by cause."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, cause: str, name: str) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + 1
        examples = self.examples.setdefault(cause, [])
        if len(examples) < _EXAMPLES:
            examples.append(name)


@dataclass
class Listing:
    """What a source holds, in the order in which it is to be indexed. A source fills it, `write_index` writes it."""

    kind: str
    """folder, list, tar or parquet."""
    root: str
    names: list[str] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    """Tar or parquet files, relative to the root."""
    container: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    label: list[str | None] | None = None
    skipped: Skipped = field(default_factory=Skipped)
    watched: dict[str, int] = field(default_factory=dict)
    """Modification times (ns) of the folders and files that were listed, by path below the source, "" for itself: while none changes, the
    listing holds."""
    begun_at: int = field(default_factory=time.time_ns)


class Index:
    """An open index. It pickles as its directory: a loader process maps the same pages."""

    def __init__(self, directory: Path) -> None:
        """Raises BadData where there is no whole index."""
        self.directory = directory
        try:
            about = json.loads((directory / "index.json").read_text())
            if about["version"] != VERSION:
                raise BadData(f"the index {str(directory)!r} is of version {about['version']}, this program's is {VERSION}: remove it")
            self.kind: str = about["kind"]
            self.root: str = about["root"]
            self.containers: list[str] = about["containers"]
            self.label_names: list[str] = about["label_names"]
            self.skipped = Skipped(**about["skipped"])
            self.sha256: str = about["sha256"]
            self._names = np.memmap(directory / "names.bin", np.uint8, "r") if (directory / "names.bin").stat().st_size else None
            self._name_end = open_memmap(directory / "name_end.npy", mode="r")
            arrays = {name: _load(directory / f"{name}.npy") for name in _OPTIONAL}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadData(f"{str(directory)!r} is no index ({error}): remove it, and run `millionway index` again") from None
        self.container_n, self.offset_n, self.length_n = arrays["container"], arrays["offset"], arrays["length"]
        self.label_n, self.gone_n = arrays["label"], arrays["gone"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Index, (self.directory,)

    def __len__(self) -> int:
        return len(self._name_end)

    def name(self, row: int) -> str:
        """The image's path below the root, or in its tar or parquet file."""
        begin = int(self._name_end[row - 1]) if row else 0
        return os.fsdecode(self._names[begin : int(self._name_end[row])].tobytes()) if self._names is not None else ""

    def full_name(self, row: int) -> str:
        """As people look for it: with the tar or parquet file that it is in."""
        if self.container_n is None:
            return self.name(row)
        container = self.containers[int(self.container_n[row])]
        return f"{container}/{self.name(row)}" if container else self.name(row)

    def all_names(self) -> list[str]:
        """`name` of each row; all of them at once cost a tenth of one by one."""
        blob, ends = b"" if self._names is None else self._names.tobytes(), self._name_end.tolist()
        return [os.fsdecode(blob[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]

    def full_names(self) -> list[str]:
        return [self.full_name(row) for row in range(len(self))]


def _load(path: Path) -> np.ndarray | None:
    return open_memmap(path, mode="r") if path.exists() else None


def write_index(listing: Listing, directory: Path, before: Index | None = None, *, settled: bool = False) -> Index:
    """Write an index whole, in the place of an older one. Images of `before` keep their ids; what is new follows. `settled`: what was
    listed will not change within the tick of a clock, however young it is.

    Raises OSError where the directory cannot be written.
    """
    if before is not None and (before.kind, before.root) == (listing.kind, listing.root):  # else it is of other data
        listing, gone = _with_ids_of(before, listing)
    else:
        gone = np.zeros(len(listing.names), bool)
    arrays: dict[str, np.ndarray] = {"gone": gone} if gone.any() else {}
    for name, kind in (("container", np.uint32), ("offset", np.uint64), ("length", np.uint64)):
        if getattr(listing, name):
            arrays[name] = np.array(getattr(listing, name), kind)
    label_names: list[str] = []
    if listing.label is not None:
        label_names = sorted({label for label in listing.label if label is not None})
        number = {label: i for i, label in enumerate(label_names)} | {None: -1}
        arrays["label"] = np.array([number[label] for label in listing.label], np.int32)

    encoded = [os.fsencode(name) for name in listing.names]
    blob = b"".join(encoded)
    arrays["name_end"] = np.cumsum([len(name) for name in encoded], dtype=np.uint64)
    digest = hashlib.sha256(f"{listing.kind}\n{json.dumps(listing.containers)}\n".encode())
    for part in (blob, *(arrays[name].tobytes() for name in ("name_end", "container", "offset", "gone") if name in arrays)):
        digest.update(part)
    about = {
        "version": VERSION,
        "kind": listing.kind,
        "root": listing.root,
        "num_images": len(encoded) - int(gone.sum()),
        "num_gone": int(gone.sum()),
        "containers": listing.containers,
        "label_names": label_names,
        "skipped": {"counts": listing.skipped.counts, "examples": listing.skipped.examples},
        "sha256": digest.hexdigest(),
        "indexed_at": time.time(),
    }
    holds_until_now = _is_unchanged(listing, directory.parent, settled)
    _write_folder(directory, about, blob, arrays)
    if holds_until_now:
        watched = listing.watched
        if _watches(listing, directory.parent):  # writing the index has changed it
            watched = watched | {"": directory.parent.stat().st_mtime_ns}
        write_whole(directory / "watched.json", json.dumps(watched))
    return Index(directory)


def _is_unchanged(listing: Listing, parent: Path, settled: bool) -> bool:
    """Whether what was listed is certain to have been listed as it is now, as far as writing into `parent` may disturb that."""
    if not listing.watched or (not settled and max(listing.watched.values()) > listing.begun_at - _RACY_NS):
        return False
    return not _watches(listing, parent) or parent.stat().st_mtime_ns == listing.watched[""]


def _watches(listing: Listing, parent: Path) -> bool:
    """Whether the folder that the index is written into is itself watched."""
    return "" in listing.watched and listing.kind != "list" and parent == Path(listing.root)


def _with_ids_of(before: Index, listing: Listing) -> tuple[Listing, np.ndarray]:
    """The listing with the images of `before` in front, in their order, and which of them are gone."""
    containers = list(dict.fromkeys(before.containers + listing.containers))
    number_of = {name: number for number, name in enumerate(containers)}
    renumbered = [number_of[name] for name in listing.containers]
    in_file = before.container_n is not None
    of_listing = [renumbered[number] for number in listing.container] if in_file else [0] * len(listing.names)
    position = {key: i for i, key in enumerate(_numbered(of_listing, listing.names))}
    merged = Listing(listing.kind, listing.root, containers=containers, skipped=listing.skipped, watched=listing.watched)
    merged.label = None if listing.label is None else []
    is_gone = []

    def take(i: int) -> None:
        merged.names.append(listing.names[i])
        if in_file:
            merged.container.append(renumbered[listing.container[i]])
            merged.offset.append(listing.offset[i])
            merged.length.append(listing.length[i])
        if merged.label is not None and listing.label is not None:
            merged.label.append(listing.label[i])
        is_gone.append(False)

    numbers = [0] * len(before) if before.container_n is None else before.container_n.tolist()
    for row, (number, name, occurrence) in enumerate(_numbered(numbers, before.all_names())):
        i = position.pop((number, name, occurrence), None)
        if i is not None:
            take(i)
            continue
        merged.names.append(name)
        if before.container_n is not None:
            merged.container.append(number)
            merged.offset.append(int(before.offset_n[row]))
            merged.length.append(int(before.length_n[row]))
        if merged.label is not None:
            merged.label.append(None)
        is_gone.append(True)
    for i in position.values():
        take(i)
    return merged, np.array(is_gone, bool)


def _numbered(containers: Sequence[int], names: Sequence[str]) -> Iterator[tuple[int, str, int]]:
    """Each with how often it came before: a tar may hold a name twice, and rows of a parquet file may all have the same."""
    seen: Counter[tuple[int, str]] = Counter()
    for key in zip(containers, names, strict=True):
        yield *key, seen[key]
        seen[key] += 1


def _write_folder(directory: Path, about: dict[str, Any], blob: bytes, arrays: dict[str, np.ndarray]) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.tmp")
    outdated = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.old")
    temporary.mkdir()
    try:
        (temporary / "names.bin").write_bytes(blob)
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array)
        write_whole(temporary / "index.json", json.dumps(about, indent=1))
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if directory.exists():
            directory.rename(outdated)
        temporary.rename(directory)
        sync(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(outdated, ignore_errors=True)


def copy_index(index: Index, directory: Path) -> Index:
    """The same index elsewhere, whole or not at all."""
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}.tmp")
    directory.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(index.directory, temporary)
    about = json.loads((temporary / "index.json").read_text())
    write_whole(temporary / "index.json", json.dumps(about | {"root": index.root}, indent=1))
    temporary.rename(directory)
    return Index(directory)


def is_fresh(index: Index, path: str) -> bool:
    """Whether no folder or file that was listed has changed since: one stat for each."""
    try:
        watched: dict[str, int] = json.loads((index.directory / "watched.json").read_text())
        times = {name: os.stat(f"{path}/{name}" if name else path).st_mtime_ns for name in watched}  # noqa: PTH116 - perhaps many
    except (OSError, ValueError):
        return False
    return times == watched


def evenly_spaced(length: int, limit: int | None) -> Sequence[int]:
    """Indices of at most `limit` of `length` items, evenly spaced."""
    return range(length) if limit is None or limit >= length else [i * length // limit for i in range(limit)]
