"""A folder of images, flat or nested, or of tar or parquet files."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence

from service.roots import climbs
from trainer.data.files import Files, is_url
from trainer.data.index import Listing
from trainer.data.parquets import list_parquet
from trainer.data.tars import list_tars
from trainer.errors import BadData

_SHARDS = (".tar", ".parquet")
_MOST_DEPTH = 32
"""Folders within each other at a web server: one that answers anything with the same page would have no end."""


def list_folder(files: Files, suffixes: Sequence[str]) -> Listing:
    """The images below the root, sorted by path; where there is none but tar or parquet files, the images in those.

    Hidden files and folders are skipped, a folder reached twice through links counts once.
    """
    listing = Listing("folder", files.root)
    shards: dict[str, list[str]] = {suffix: [] for suffix in _SHARDS}
    for name in _remote_names(files, listing) if is_url(files.root) else _local_names(files.root, listing):
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - Path costs ten times as much, for each of a million
        if suffix in suffixes:
            listing.names.append(name)
        elif suffix in shards:
            shards[suffix].append(name)
        else:
            listing.skipped.add(f"with suffix {suffix!r}" if suffix else "without suffix", name)
    tars, parquets = shards[".tar"], shards[".parquet"]
    if not listing.names and tars and parquets:
        raise BadData(f"{files.root!r} holds {len(tars)} tar and {len(parquets)} parquet files: name a folder with one kind")
    if not listing.names and (tars or parquets):
        inner = list_tars(files, sorted(tars)) if tars else list_parquet(files, sorted(parquets))
        inner.watched |= listing.watched
        return inner
    for suffix, names in shards.items():
        for name in names:
            listing.skipped.add(f"with suffix {suffix!r} beside images", name)
    listing.names.sort()
    if all("/" in name for name in listing.names):
        listing.label = [name.partition("/")[0] for name in listing.names]
    return listing


def _remote_names(files: Files, listing: Listing) -> list[str]:
    if files.root.startswith(("http://", "https://")):
        return sorted(_linked_names(files, listing))
    root = files.remote._strip_protocol(files.root).rstrip("/")
    names = [path[len(root) :].removeprefix("/") for path in files.remote.find(root)]
    return [name for name in names if name and not name.endswith("/") and not _is_hidden(name)]


def _linked_names(files: Files, listing: Listing) -> set[str]:
    """What the pages of a server link to below the root, as it stands there: encoded. fsspec's own walk also lists links to sort by, and
    links up, and follows those that are so encoded that it does not see them."""
    root = files.root.rstrip("/") + "/"
    names: set[str] = set()
    seen, pending = {""}, [""]
    while pending:
        prefix = pending.pop()
        for link in files.remote.ls(root + prefix, detail=False):
            address, _, query = html.unescape(link).partition("#")[0].partition("?")
            name = address.removeprefix(root + prefix).removeprefix("./")
            if not name or name == address or climbs(name, in_url=True) or _is_hidden(name):  # the folder itself, or links out of it
                continue
            if query:
                listing.skipped.add("addresses with a query", prefix + name)
            elif not name.endswith("/"):
                names.add(prefix + name)
            elif prefix + name not in seen and prefix.count("/") < _MOST_DEPTH:
                seen.add(prefix + name)
                pending.append(prefix + name)
    return names


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _local_names(root: str, listing: Listing) -> list[str]:
    names: list[str] = []
    visited: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        prefix = pending.pop()
        folder = os.path.join(root, prefix)  # noqa: PTH118
        status = os.stat(folder)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        listing.watched[prefix] = status.st_mtime_ns
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                try:
                    is_dir, is_file = entry.is_dir(), entry.is_file()
                except OSError:  # a link that leads to itself
                    is_dir = is_file = False
                if is_dir:
                    folders.append(f"{prefix}{entry.name}/")
                elif is_file:
                    names.append(prefix + entry.name)
                else:
                    listing.skipped.add("that are no files, or links to nothing", prefix + entry.name)
        pending += sorted(folders, reverse=True)  # which of two links to a folder comes first must not depend on the disk
    return names
