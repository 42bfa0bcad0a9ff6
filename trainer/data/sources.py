"""What a pile of images can be, and its listing.

    a folder              of images, flat or nested (folders.py)
    a folder of *.tar     WebDataset shards (tars.py); of *.parquet: with image bytes (parquets.py); or one such file
    a .txt, .csv, .parquet file that names images   (lists.py)

Each may be local or at a URL.
"""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from trainer.data.files import Files, is_url
from trainer.data.folders import list_folder
from trainer.data.index import Listing
from trainer.data.lists import list_csv, list_parquet_names, list_txt
from trainer.data.parquets import holds_image_bytes, list_parquet
from trainer.data.tars import list_tars
from trainer.errors import BadData

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_source(path: str) -> Listing:
    """Look through what `path` names. Raises BadData where it is missing, unreadable, of no known kind, or holds fewer than 2 images."""
    files = Files(path)
    listing = _list(path, files)
    if len(listing.names) < 2:
        skipped = sum(listing.skipped.counts.values())
        also = f" ({skipped} other files: {_causes(listing)})" if skipped else ""
        raise BadData(
            f"{path!r} holds {'one image' if listing.names else 'no image'}{also}: name a folder, list, tar or parquet file with at "
            f"least 2 images ({', '.join(IMAGE_SUFFIXES)})"
        )
    return listing


def _causes(listing: Listing) -> str:
    return ", ".join(f"{count} {cause}" for cause, count in sorted(listing.skipped.counts.items()))


def _list(path: str, files: Files) -> Listing:
    suffix = PurePosixPath(path.partition("?")[0]).suffix.lower()
    try:
        if suffix == ".txt":
            return list_txt(files)
        if suffix == ".csv":
            return list_csv(files)
        if suffix == ".parquet" and not _is_folder(path, files):
            return list_parquet(files, [""]) if holds_image_bytes(files) else list_parquet_names(files)
        if suffix == ".tar" and not _is_folder(path, files):
            return list_tars(files, [""])
        if path.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".zip")):
            raise BadData(
                f"{path!r} is compressed, and no image in it can be read without all before it: unpack it, or make it a plain .tar"
            )
        if not _is_folder(path, files):
            raise BadData(f"{path!r} is a file of no kind known here: name a folder, or a .txt, .csv, .tar or .parquet file")
        return list_folder(files, IMAGE_SUFFIXES)
    except OSError as error:
        raise BadData(f"cannot read {path!r} ({error.strerror or error}): {_remedy(error)}") from None


def _is_folder(path: str, files: Files) -> bool:
    if is_url(path):
        return bool(files.remote.isdir(path))
    os.stat(path)  # noqa: PTH116 - raises where there is nothing
    return os.path.isdir(path)  # noqa: PTH112


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "give the absolute path of a folder or file that exists on the worker's machine"
    return "make it readable for the user that the worker runs as"
