"""Images at a real web server, and one that is away."""

from __future__ import annotations

import itertools
import shutil
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

from deploy.terminal import load_spec
from service.spec import RunSpec
from tests.images import kept, noise_folder
from tests.web import served
from trainer.data.files import CACHE_DIR, Files
from trainer.data.images import index_images
from trainer.data.loader import ViewLoader
from trainer.data.reading import num_readable
from trainer.data.remote import Patience, open_file_system
from trainer.errors import BadData


def tar_of(folder: Path, path: Path) -> Path:
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.glob("*.png")):
            tar.add(file, file.name)
    return path


def test_a_web_servers_folder_holds_what_its_pages_link_to_below_it(tmp_path: Path) -> None:
    """In sub-folders as well, with names that have to be encoded; neither links to sort by, nor up, nor elsewhere, nor hidden files."""
    folder = noise_folder(tmp_path / "www" / "some images" / "cat", 3)
    (folder / "000.png").rename(folder / "a b.png")
    (folder / "001.png").rename(folder / "50%25 #1?.png")
    shutil.copytree(folder, folder.parent / "dog" / "small")
    shutil.copytree(folder, folder.parent / ".hidden")
    with served(tmp_path / "www") as url:
        found = index_images(f"{url}/some%20images", tmp_path / "index")
        names = [found.name(i) for i in range(len(found))]
        files = Files(found.index.root)
        assert [files.read(name) for name in names[:3]] == [path.read_bytes() for path in sorted(folder.iterdir())]
    in_folder = ["50%2525%20%231%3F.png", "002.png", "a%20b.png"]
    assert sorted(names) == sorted([f"cat/{name}" for name in in_folder] + [f"dog/small/{name}" for name in in_folder])
    assert found.index.label_names == ["cat", "dog"]
    assert found.index.skipped.counts == {}


def test_loader_processes_give_the_same_from_a_web_server_and_say_when_it_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar there, of which parts are fetched, against one on disk. Once the server is gone it is waited for, once."""
    monkeypatch.setenv(CACHE_DIR, str(tmp_path / "cache"))
    path = tar_of(noise_folder(tmp_path / "images", 24), tmp_path / "www" / "shard.tar")
    base = {
        "optimizer": {"global_batch_size": 6},
        "schedule": {"epochs": 1},
        "classifier": {"hardest_k": 5},
        "data": {"path": str(path), "image_size": 16, "cache_gib": 0, "read_timeout_seconds": 3},
    }
    spec = RunSpec.model_validate(base)
    expected = [kept(batch).views[0] for batch in itertools.islice(ViewLoader(index_images(path, tmp_path / "local"), spec, 0, 1, 0), 2)]
    with served(path.parent) as url:
        images = index_images(f"{url}/shard.tar", tmp_path / "index")
        batches = iter(ViewLoader(images, spec, 0, 1, 0, num_workers=1))
        found = [kept(next(batches)).views[0] for _ in range(2)]
    assert all(map(torch.equal, found, expected))
    bad = [bad for batch in itertools.islice(batches, 8) for bad in batch.bad]
    assert {bad.cause for bad in bad} == {"read error"}
    assert any("the server has not answered for" in bad.message for bad in bad)
    assert not num_readable(images.index, range(4), 1.0)


def test_a_server_that_sends_no_parts_of_files_is_named_with_what_needs_them(tmp_path: Path) -> None:
    """At once for a tar; not taken for an image where an index says where in the tar it is."""
    path = tar_of(noise_folder(tmp_path / "images", 4), tmp_path / "www" / "shard.tar")
    with served(path.parent, sends_parts=False) as url:
        with pytest.raises(BadData, match=r"cannot read .*/shard.tar.* range requests.*sends parts of files \(HTTP Range\)$"):
            index_images(f"{url}/shard.tar", tmp_path / "index")
        (path.parent / "damaged.parquet").write_bytes(b"PAR1" + b"damaged" * 1000)
        with pytest.raises(BadData, match=r"cannot read .*/damaged.parquet.*ArrowInvalid"):  # no fault of the server, and not waited for
            index_images(f"{url}/damaged.parquet", tmp_path / "index")
        with pytest.raises(OSError, match="sends the whole file"):
            Files(f"{url}/shard.tar").read("", 512, 100)
        with pytest.raises(BadData, match=r"nothing at this address.*give an address that this machine reaches"):
            index_images(f"{url}/no.tar", tmp_path / "index")


def test_a_specifications_addresses_stay_what_they_are(tmp_path: Path) -> None:
    """Only paths on this machine are made absolute."""
    file = tmp_path / "spec.yaml"
    data = "data: {path: 'http://server/images', index: an-index}\nevaluation: {labelled: 's3://bucket/labelled', queries: q}\n"
    file.write_text(f"preset: demo\n{data}")
    spec = load_spec(file)
    assert (spec.data.path, spec.data.index) == ("http://server/images", str(Path("an-index").resolve()))
    assert (spec.evaluation.labelled, spec.evaluation.queries) == ("s3://bucket/labelled", str(Path("q").resolve()))


class Answer(Exception):
    """As aiohttp's."""

    def __init__(self, status: int) -> None:
        self.status = status


def test_what_may_pass_is_asked_again_and_what_will_not_is_not() -> None:
    """A busy server's answer comes in the end; one that refuses is asked once; one that is away for long ends it, unless another request
    was answered meanwhile: then it is this one's fault."""
    patience = Patience(0.6)
    answers = iter([Answer(503), ConnectionResetError("reset"), b"image"])

    def busy() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked: list[int] = []

    def refused() -> bytes:
        asked.append(1)
        raise Answer(403)

    def away() -> bytes:
        raise FileNotFoundError("http://server/image") from ConnectionRefusedError("refused")  # as fsspec puts it

    def away_while_others_are_answered() -> bytes:
        patience.ask(lambda: b"another")
        raise Answer(500)

    assert patience.ask(busy) == b"image"
    with pytest.raises(PermissionError, match="the server answers 403: credentials"):
        patience.ask(refused)
    assert asked == [1]
    with pytest.raises(OSError, match="Answer"):
        patience.ask(away_while_others_are_answered)
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"has not answered for \d s: .*refused"):
        patience.ask(away)
    with pytest.raises(OSError, match="refused"):  # it is known to be away
        patience.ask(away)
    assert time.monotonic() - begun < 2 * patience.seconds
    assert patience.ask(lambda: b"image") == b"image"


@pytest.mark.parametrize("name", ["../x.png", "a/%2e%2E/x.png", "..%2fx.png", "http://elsewhere/x.png", "/x.png"])
def test_an_address_does_not_lead_out_of_its_folder_encoded_or_not(name: str) -> None:
    """HTTP clients resolve `%2e%2e` as they do `..`."""
    with pytest.raises(PermissionError):
        Files("http://server/images").path(name)


def test_a_package_that_is_missing_is_named_as_it_is_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an extra of this package."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BadData, match=r"pip install 'millionway\[s3\]'"):
        open_file_system("s3://bucket/images")
