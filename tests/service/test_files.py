"""Checkpoints and exports over HTTP, from the runs directory."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from service.client import ApiClient
from service.errors import ApiProblem, MillionwayError
from service.layout import RunDir
from service.runs import Run
from service.settings import Settings
from tests.conftest import running_api
from tests.service.reading import Reading
from tests.web import serving

SHARD = random.Random(0).randbytes(300_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def run(api: Reading) -> Run:
    """With a checkpoint of step 10 and an export."""
    run = api.started()
    api.report(run, api.checkpointed(10))
    checkpoint, export = RunDir(api.runs_dir / run.id).checkpoint(10), RunDir(api.runs_dir / run.id).export
    for directory in (checkpoint, export):
        directory.mkdir(parents=True)
    (checkpoint / "shard.safetensors").write_bytes(SHARD)
    (checkpoint / "manifest.json").write_text(json.dumps({"files": {"shard.safetensors": {"sha256": sha256(SHARD)}}}))
    (export / "model.safetensors").write_bytes(SHARD[:1000])
    (export / "SHA256SUMS").write_text(f"{sha256(SHARD[:1000])}  model.safetensors\n")
    return run


def shard(run: Run) -> str:
    return f"/runs/{run.id}/checkpoints/10/files/shard.safetensors"


def test_files_are_listed_with_their_checksums(api: Reading, run: Run) -> None:
    """A checkpoint's are in its manifest, an export's in its SHA256SUMS."""
    assert [(file.name, file.num_bytes, file.sha256) for file in api.client.files(run.id, step=10)][1] == (
        "shard.safetensors",
        300_000,
        sha256(SHARD),
    )
    assert [(file.name, file.sha256) for file in api.client.files(run.id)] == [
        ("SHA256SUMS", None),
        ("model.safetensors", sha256(SHARD[:1000])),
    ]


def test_a_file_comes_whole_with_its_checksum_as_etag(api: Reading, run: Run) -> None:
    """As bytes to be saved, never as a page."""
    answer = api.http.get(shard(run))
    assert answer.content == SHARD
    assert answer.headers["etag"] == f'"{sha256(SHARD)}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="shard.safetensors"'
    assert api.http.get(f"/runs/{run.id}/export/model.safetensors").content == SHARD[:1000]


def test_head_says_what_get_would_send(api: Reading, run: Run) -> None:
    """Length and ETag, and no body."""
    head, whole = api.http.head(shard(run)), api.http.get(shard(run))
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "etag", "accept-ranges", "last-modified"):
        assert head.headers[name] == whole.headers[name]


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [("bytes=0-9", 0, 10), ("bytes=299990-", 299_990, 300_000), ("bytes=-10", 299_990, 300_000), ("bytes=10-9999999", 10, 300_000)],
)
def test_a_range_is_a_part_of_the_file(api: Reading, run: Run, asked: str, start: int, stop: int) -> None:
    """206 with the place of the part."""
    answer = api.http.get(shard(run), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, SHARD[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/300000"


@pytest.mark.parametrize("asked", ["bytes=300000-", "bytes=-0", "bytes=999999999999-"])
def test_a_range_behind_the_end_is_a_problem_with_the_size(api: Reading, run: Run, asked: str) -> None:
    """416 as a problem document."""
    answer = api.http.get(shard(run), headers={"Range": asked})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */300000"


@pytest.mark.parametrize("asked", ["bytes=5-3", "lines=1-2", "bytes=0-1,5-6", "bytes", "bytes=--1", "bytes=" + "9" * 5000 + "-"])
def test_what_is_no_range_of_ours_is_ignored(api: Reading, run: Run, asked: str) -> None:
    """The whole file, as RFC 9110 allows."""
    answer = api.http.get(shard(run), headers={"Range": asked})
    assert (answer.status_code, answer.content) == (200, SHARD)


def test_conditions_compare_the_etag(api: Reading, run: Run) -> None:
    """If-None-Match saves the transfer; If-Range sends the whole of another file."""
    etag = api.http.head(shard(run)).headers["etag"]
    for known in (etag, f'"x", W/{etag}', "*"):
        assert api.http.get(shard(run), headers={"If-None-Match": known}).status_code == 304
    assert api.http.get(shard(run), headers={"If-None-Match": '"x"'}).status_code == 200
    part = {"Range": "bytes=0-9"}
    assert api.http.get(shard(run), headers={**part, "If-Range": etag}).status_code == 206
    assert api.http.get(shard(run), headers={**part, "If-Range": '"x"'}).content == SHARD


ESCAPES = ["%2E%2E", "%2E", "..%2F..%2F..%2F..%2Fkeys%2Fadmin.key", "%2Fetc%2Fpasswd", "link", "folder", "%00", "x" * 300]


def test_no_name_leads_out_of_the_folder(api: Reading, run: Run) -> None:
    """Only a name that is listed is opened; neither links nor folders are."""
    for folder in (RunDir(api.runs_dir / run.id).checkpoint(10), RunDir(api.runs_dir / run.id).export):
        (folder / "link").symlink_to(api.directory / "keys" / "admin.key")
        (folder / "folder").mkdir()
    for name in ESCAPES:
        for path in (f"/runs/{run.id}/checkpoints/10/files/{name}", f"/runs/{run.id}/export/{name}"):
            answer = api.http.get(path)
            assert (name, answer.status_code) == (name, 404)
            assert api.key not in answer.text
    assert {file.name for file in api.client.files(run.id)} == {"SHA256SUMS", "model.safetensors"}


def test_a_folder_that_is_a_link_is_not_followed(api: Reading, run: Run) -> None:
    """Whoever can write into the runs directory shows nothing of the API's host."""
    directory = RunDir(api.runs_dir / run.id)
    directory.export.rename(directory.path / "elsewhere")
    directory.export.symlink_to(api.directory / "keys")
    with pytest.raises(ApiProblem, match="symbolic link"):
        api.client.files(run.id)
    directory.path.rename(api.runs_dir / "moved")
    directory.path.symlink_to(api.runs_dir / "moved")
    with pytest.raises(ApiProblem, match="symbolic link"):
        api.client.files(run.id, step=10)


def test_what_is_not_there_is_told_apart(api: Reading, run: Run) -> None:
    """A step that was never written; one that is gone from the disk; a name that is none."""
    api.report(run, api.checkpointed(20))
    for path, code in (
        ("checkpoints/30/files", "checkpoint_not_found"),
        ("checkpoints/20/files", "files_not_here"),
        ("export/x", "files_not_here"),
    ):
        answer = api.http.get(f"/runs/{run.id}/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, code)
    assert api.http.get(f"/runs/{api.submit().id}/export").json()["code"] == "files_not_here"


def test_an_api_without_the_runs_directory_says_so(api: Reading, run: Run, redis_session: str, tmp_path: Path) -> None:
    """With the variable that names it."""
    another = running_api(Settings(redis_url=f"{redis_session}/2", state_dir=tmp_path))
    with another as url, ApiClient(url, key=api.key, retries=0) as client, pytest.raises(ApiProblem, match="MILLIONWAY_RUNS_DIR"):
        client.files(run.id, step=10)


def test_a_download_is_whole_or_not_at_all(api: Reading, run: Run, tmp_path: Path) -> None:
    """Compared with the checksum that the writer noted; what does not match is not left behind."""
    target = tmp_path / "got" / "shard.safetensors"
    target.parent.mkdir()
    api.client.download(run.id, "shard.safetensors", target, step=10)
    assert target.read_bytes() == SHARD
    (RunDir(api.runs_dir / run.id).export / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(MillionwayError, match="damaged"):
        api.client.download(run.id, "model.safetensors", target.with_name("model"))
    assert [path.name for path in target.parent.iterdir()] == ["shard.safetensors"]


def breaking_server(content: bytes, etags: Iterator[str], ranges: list[str | None]) -> AbstractContextManager[str]:
    """A server that breaks off after 100,000 bytes of each answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            etag, asked = f'"{next(etags)}"', self.headers.get("Range")
            ranges.append(asked)
            start = int(asked.removeprefix("bytes=").strip("-")) if asked and self.headers.get("If-Range") == etag else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + 100_000])

        def log_message(self, *_: object) -> None:
            pass

    return serving(Handler)


def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    """By Range and If-Range; a file that has become another one meanwhile starts over."""
    ranges: list[str | None] = []
    right = sha256(SHARD)
    with breaking_server(SHARD, iter(["0" * 64] + [right] * 9), ranges) as url, ApiClient(url, key="k") as client:
        client.download("r", "shard", tmp_path / "shard")
    assert (tmp_path / "shard").read_bytes() == SHARD
    assert ranges == [None, "bytes=100000-", "bytes=100000-", "bytes=200000-"]
