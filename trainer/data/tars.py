"""Images in tar files (WebDataset's layout), read at their offset: nothing is unpacked.

A sample's members share the name up to the first dot after the last slash: `0001.jpg` and `0001.cls` are an image and its label.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from trainer.data.files import Files, is_url
from trainer.data.index import Listing

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_LABEL_SUFFIXES = (".cls", ".txt")
"""In this order; a longer text than _LABEL_BYTES is a caption, and no label."""
_LABEL_BYTES = 64


def list_tars(files: Files, names: Sequence[str]) -> Listing:
    """The images in tar files, in the order of the files and of the members. A file that ends too early gives what is whole in it.

    Raises OSError where a file cannot be opened.
    """
    listing = Listing("tar", files.root, containers=list(names))
    labels: list[str | None] = []
    for number, name in enumerate(names):
        if not is_url(files.root):
            listing.watched[name] = os.stat(files.path(name)).st_mtime_ns  # noqa: PTH116
        labels += _list_tar(files, name, number, listing)
    if any(label is not None for label in labels):
        listing.label = labels
    return listing


def _list_tar(files: Files, name: str, number: int, listing: Listing) -> list[str | None]:
    """Adds the file's images; returns their labels."""
    keys: list[str] = []
    label_of: dict[str, tuple[int, str]] = {}
    with files.open(name) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 512))
        if any(stream.read(512)):
            listing.skipped.add("tar files that end in the middle", name)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                    if not member.isfile():
                        if not member.isdir():
                            listing.skipped.add("that are no regular members", f"{name}/{member.name}")
                        continue
                    key, suffix = _split(member.name)
                    if member.offset_data + member.size > size:
                        listing.skipped.add("cut off at the end of their tar file", f"{name}/{member.name}")
                    elif suffix in _SUFFIXES:
                        listing.names.append(member.name)
                        listing.container.append(number)
                        listing.offset.append(member.offset_data)
                        listing.length.append(member.size)
                        keys.append(key)
                    elif suffix in _LABEL_SUFFIXES and member.size <= _LABEL_BYTES:
                        rank = _LABEL_SUFFIXES.index(suffix)
                        text = stream_text(tar, member)
                        if text and (key not in label_of or rank < label_of[key][0]):
                            label_of[key] = (rank, text)
                    elif suffix not in (".json", *_LABEL_SUFFIXES):
                        listing.skipped.add(f"with suffix {suffix!r}" if suffix else "without suffix", f"{name}/{member.name}")
        except tarfile.TarError as error:
            listing.skipped.add(f"tar files that break in the middle ({error})", name)
    return [label_of[key][1] if key in label_of else None for key in keys]


def stream_text(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    reader = tar.extractfile(member)
    return reader.read().decode("utf-8", "replace").strip() if reader else ""


def _split(name: str) -> tuple[str, str]:
    """The sample's key, and the suffix of the name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0], Path(base).suffix.lower()
