"""What a pile of images can be, and its listing.

    a folder              of images, flat or nested (folders.py)
    a folder of *.tar     WebDataset shards (tars.py); of *.parquet: with image bytes (parquets.py); or one such file
    a .txt, .csv, .parquet file that names images   (lists.py)

Each may be local or at a URL.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from pathlib import PurePosixPath

from trainer.data.files import Files, is_url
from trainer.data.folders import list_folder
from trainer.data.index import Listing
from trainer.data.lists import list_csv, list_parquet_names, list_txt
from trainer.data.parquets import holds_image_bytes, list_parquet
from trainer.data.remote import as_os_error, may_pass
from trainer.data.tars import list_tars
from trainer.errors import BadData, StorageError, TrainerError

log = logging.getLogger(__name__)

PATIENCE_SECONDS, POLL_SECONDS = 30.0, 2.0
_MAY_PASS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH})
"""What a path on this machine is answered while a file server is away."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def list_source(path: str) -> Listing:
    """Look through what `path` names. Raises BadData where it is missing, unreadable, of no known kind, or holds fewer than 2 images,
    and StorageError where what it lies on is away, and stays away for PATIENCE_SECONDS."""
    deadline, has_told = time.monotonic() + PATIENCE_SECONDS, False
    while True:
        try:
            listing = _list(path, Files(path))
            break
        except StorageError as error:
            if time.monotonic() >= deadline:
                raise
            if not has_told:
                log.warning("%s; it is tried again for %g s", error, PATIENCE_SECONDS)
            has_told = True
            time.sleep(POLL_SECONDS)
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
    except TrainerError:
        raise
    except Exception as error:  # of a URL whatever its library raises
        if not (is_url(path) or isinstance(error, OSError)):
            raise
        cause = as_os_error(error)
        is_away = may_pass(error) if is_url(path) else cause.errno in _MAY_PASS
        kind = StorageError if is_away else BadData
        raise kind(f"cannot read {path!r} ({cause.strerror or cause}): {_remedy(path, cause)}") from None


def _is_folder(path: str, files: Files) -> bool:
    if is_url(path):
        if files.remote.isdir(path):
            return True
        if not files.remote.exists(path):
            raise FileNotFoundError(errno.ENOENT, "there is nothing at this address")
        return False
    os.stat(path)  # noqa: PTH116 - raises where there is nothing
    return os.path.isdir(path)  # noqa: PTH112


def _remedy(path: str, error: OSError) -> str:
    if is_url(path):
        parts = ", and that sends parts of files (HTTP Range)" if path.endswith((".tar", ".parquet")) else ""
        return f"give an address that this machine reaches and, with the credentials in the worker's environment, may read{parts}"
    if isinstance(error, FileNotFoundError):
        return "give the absolute path of a folder or file that exists on the worker's machine"
    return "make it readable for the user that the worker runs as"
