"""The rows of a checkpoint: written by any number of ranks, loaded by any other, read by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from trainer import checkpoint
from trainer.checkpoint_files import Saved
from trainer.classifier import ShardedClassifier, SoftTargets
from trainer.classifier.shard import Shard
from trainer.read_rows import num_rows, read_rows, write_npy

N, D, K = 101, 8, 3


def of_rank(rank: int, world_size: int, dtype: torch.dtype) -> ShardedClassifier:
    """A classifier as this rank has it, its rows 0."""
    shard = Shard(N, rank, world_size)
    classifier = ShardedClassifier(len(shard), D, SoftTargets(0.15, 0.2, K), capacity=4, rows_dtype=dtype, momentum_dtype=dtype)
    classifier.shard = shard
    return classifier


def written(directory: Path, world_size: int, dtype: torch.dtype) -> tuple[Saved, dict[str, torch.Tensor]]:
    """A checkpoint's shards, and what is in them as one tensor each."""
    whole = {
        "rows": torch.randn(N, D).to(dtype),
        "rows_momentum": torch.randn(N, D).to(dtype),
        "hardest": torch.randint(N, (N, K), dtype=torch.int32),
    }
    files = {}
    for rank in range(world_size):
        classifier = of_rank(rank, world_size, dtype)
        mine = slice(classifier.shard.start, classifier.shard.stop)
        classifier.rows_nD.copy_(whole["rows"][mine])
        classifier.momentum_nD.copy_(whole["rows_momentum"][mine])
        classifier.hardest_nK = whole["hardest"][mine]
        name = f"shard-{rank:05d}-of-{world_size:05d}.safetensors"
        about = checkpoint._write_tensors(directory / name, checkpoint._shard_tensors(classifier))
        files[name] = about | {"start": mine.start, "stop": mine.stop}
    (directory / "manifest.json").write_text(json.dumps({"files": files}))
    return Saved(directory, {"files": files, "world_size": world_size}), whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_eight_ranks_wrote_any_number_of_ranks_loads_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, their momentum and the hardest classes, on 1, 3, 5 and 64 ranks; in pieces smaller than a shard."""
    monkeypatch.setattr(checkpoint, "READ", 5)
    saved, whole = written(tmp_path, 8, dtype)
    for world_size in (1, 3, 5, 64):
        ranks = [of_rank(rank, world_size, dtype) for rank in range(world_size)]
        for classifier in ranks:
            checkpoint._load_rows(saved, classifier)
        assert torch.equal(torch.cat([c.rows_nD for c in ranks]), whole["rows"])
        assert torch.equal(torch.cat([c.momentum_nD for c in ranks]), whole["rows_momentum"])
        assert torch.equal(torch.cat([c.hardest_nK for c in ranks if c.hardest_nK is not None]), whole["hardest"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numpy_alone_reads_the_rows(tmp_path: Path, dtype: torch.dtype) -> None:
    """All of them, or a part across shards, equal to what safetensors' own reader gives."""
    saved, whole = written(tmp_path, 3, dtype)
    assert num_rows(tmp_path) == N
    for start, stop in ((0, None), (30, 90), (40, 41), (7, 7)):
        expected = whole["rows"][start:stop].float().numpy()
        assert np.array_equal(read_rows(tmp_path, start, stop), expected.reshape(-1, D) if len(expected) else np.empty((0, 0)))
    assert np.array_equal(read_rows(tmp_path, name="hardest"), whole["hardest"].numpy())
    with safe_open(tmp_path / next(iter(saved.manifest["files"])), "pt") as file:
        assert np.array_equal(read_rows(tmp_path, 0, 33, "rows_momentum"), file.get_tensor("rows_momentum").float().numpy())
    for start, stop in ((-1, 5), (5, 4), (0, N + 1)):
        with pytest.raises(ValueError, match="it has rows 0 to 101"):
            read_rows(tmp_path, start, stop)
    with pytest.raises(ValueError, match="is no checkpoint"):
        num_rows(tmp_path / "nowhere")


def test_the_reader_needs_neither_torch_nor_safetensors(tmp_path: Path) -> None:
    """As a command, in a Python where they cannot be imported."""
    _, whole = written(tmp_path, 2, torch.bfloat16)
    code = "import sys; sys.modules['torch'] = sys.modules['safetensors'] = None\nfrom trainer.read_rows import main; main()"
    out = tmp_path / "rows.npy"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(out)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{N} rows of {D} numbers in {out}")
    assert np.array_equal(np.load(out), whole["rows"].float().numpy())


def test_a_file_of_rows_is_written_in_blocks_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that end within shards give the same file; where a shard is gone, none is left."""
    monkeypatch.setattr("trainer.read_rows.BLOCK", 7)
    saved, whole = written(tmp_path, 3, torch.float16)
    assert write_npy(tmp_path, tmp_path / "part.npy", 30, 90) == (60, D)
    assert np.array_equal(np.load(tmp_path / "part.npy"), whole["rows"][30:90].float().numpy())
    (tmp_path / list(saved.manifest["files"])[2]).unlink()
    with pytest.raises(OSError, match="shard-00002"):
        write_npy(tmp_path, tmp_path / "all.npy")
    assert sorted(path.name for path in tmp_path.glob("*all.npy*")) == []
