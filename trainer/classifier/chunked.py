"""Both passes in plain PyTorch, one chunk of classes and one tile of samples at a time: for CPUs, and for GPUs without Triton.

A tile of scores is [classes, samples]: the products of this shape are the fastest on CPUs, and maxima over groups of classes run
along memory. It stays in a CPU's cache from the first product to the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from trainer.classifier.backend import Scan, SecondPass
from trainer.classifier.products import Fp32
from trainer.classifier.store import SGD, Chunk, RowStore
from trainer.classifier.targets import EPS, score_pairs
from trainer.classifier.topk import HardestClasses, move_keys

LOG2_E = math.log2(math.e)


class ChunkedBackend:
    """`chunk_size` classes by at most `tile_size` samples of scores exist at a time."""

    def __init__(self, products: Fp32, chunk_size: int, tile_size: int) -> None:
        self.products, self.chunk_size, self.tile_size = products, chunk_size, tile_size
        self.name = f"torch, {products.name}"

    def scan(self, store: RowStore, x_BD: Tensor, own_B: Tensor, k: int, temperature: float) -> Scan:
        with self.products.kernels():
            return self._scan(store, x_BD, own_B, k, temperature)

    def row_gradients(self, store: RowStore, batch: SecondPass, temperature: float, *, update: bool) -> Iterator[tuple[Chunk, Tensor]]:
        with self.products.kernels():
            yield from self._row_gradients(store, batch, temperature, update)

    def update(self, store: RowStore, batch: SecondPass, temperature: float, sgd: SGD) -> None:
        for chunk, gradient_CD in self.row_gradients(store, batch, temperature, update=True):
            chunk.update(gradient_CD, sgd)

    def _scan(self, store: RowStore, x_BD: Tensor, own_B: Tensor, k: int, temperature: float) -> Scan:
        products, scale = self.products, LOG2_E / temperature
        B, D = x_BD.shape
        partition_B = x_BD.new_zeros(B, dtype=torch.float64)
        pull_BD = torch.zeros_like(x_BD)
        tiles = self._tiles(B)
        feature_tDb = [products.operand((x_BD[tile] * scale).T.contiguous()) for tile in tiles]
        local_B = torch.where(own_B < 0, -1, torch.where(own_B < store.start, -2, own_B - store.start))
        hardest_t = []
        for tile in tiles if k else []:
            exact = partial(score_pairs, store.rows_nD, x_BD[tile])
            hardest_t.append(HardestClasses(local_B[tile], k, exact, scale, products.slack(D)))
        highest_B = torch.full_like(partition_B, -torch.inf, dtype=torch.float32)  # scores so far, where exponentials are shifted
        own = _OwnClasses(store, x_BD, own_B, self, len(tiles)) if products.is_rounded else None
        buffers = _Buffers(self.chunk_size, min(len(store), self.chunk_size), self.tile_size, D, x_BD.device, products.score_dtype)
        for chunk in store.read(self.chunk_size):
            _, w_CD = buffers.unit(chunk.rows_CD)
            w = products.operand(w_CD)
            for number, tile in enumerate(tiles):
                score_Cb = products.mm(w, feature_tDb[number], buffers.tile(len(w), tile))
                if k:
                    hardest_t[number].offer(score_Cb, chunk.at.start)
                if own is not None:
                    own.leave_out(score_Cb, chunk.at.start // self.chunk_size, number)
                if products.shift is not None:
                    before_b, highest_B[tile] = highest_B[tile].clone(), torch.maximum(highest_B[tile], score_Cb.amax(0))
                    finite_b = highest_B[tile].masked_fill(highest_B[tile] == -torch.inf, 0.0)  # there is nothing but the own class yet
                    score_Cb += products.shift - finite_b
                    fewer_b = (before_b - finite_b).exp2_()
                    partition_B[tile] *= fewer_b
                    pull_BD[tile] *= fewer_b[:, None]
                score_Cb.exp2_()
                partition_B[tile] += score_Cb.sum(0, dtype=torch.float32)
                products.add_mm(pull_BD[tile], products.exponentials(score_Cb).T, w)
        if products.shift is not None and len(store):
            unshift_B = highest_B - products.shift
            partition_B *= unshift_B.double().exp2_()
            pull_BD *= unshift_B.exp2_()[:, None]
        if own is not None:
            own.add(partition_B, pull_BD, temperature)
        key_tbK = [move_keys(hardest.keys(), store.start) for hardest in hardest_t]
        return Scan(partition_B, pull_BD, torch.cat(key_tbK) if key_tbK else own_B.new_empty(B, k))

    def _row_gradients(self, store: RowStore, batch: SecondPass, temperature: float, update: bool) -> Iterator[tuple[Chunk, Tensor]]:
        products, scale = self.products, LOG2_E / temperature
        x_BD, pairs = batch.x_BD, batch.pairs
        B, D = x_BD.shape
        log_partition_B = batch.partition_B.log2()
        if products.shift is None:
            shift_B = torch.zeros_like(log_partition_B)
            factor_BD, gain = x_BD * (batch.scale_B / (batch.partition_B * temperature)).float()[:, None], 1.0
        else:
            # Probabilities times 2^shift, their samples' scales among them; what the scales have in common comes last, in fp32.
            largest = torch.cat([batch.scale_B, batch.scale_B.new_full((1,), torch.finfo(torch.float32).tiny)]).max()
            shift_B = products.shift - log_partition_B + (batch.scale_B / largest).double().log2()
            factor_BD, gain = x_BD, float(largest) / (temperature * 2.0**products.shift)
        tiles = self._tiles(B)
        feature_tDb = [products.operand((x_BD[tile] * scale).T.contiguous()) for tile in tiles]
        factor_tbD = [products.operand(factor_BD[tile]) for tile in tiles]
        shift_B32 = shift_B.float()
        # What stands in the place of a target's exponential: the difference of the probabilities, from the exact score, rounded once.
        exponent_T = shift_B[pairs.sample_T]
        value_T = (pairs.score_T.double() * scale + exponent_T).exp2_()
        value_T -= pairs.weight_T * (log_partition_B[pairs.sample_T] + exponent_T).exp2_()
        entries = Entries(pairs.class_T, pairs.sample_T, value_T.to(products.score_dtype), self.chunk_size, self.tile_length(B), len(tiles))
        buffers = _Buffers(self.chunk_size, min(len(store), self.chunk_size), self.tile_size, D, x_BD.device, products.score_dtype)
        for chunk in store.read(self.chunk_size, momentum=update):
            norm_C1, w_CD = buffers.unit(chunk.rows_CD)
            w = products.operand(w_CD)
            gradient_CD = buffers.gradient(len(w))
            if not tiles:
                gradient_CD.zero_()
            for number, tile in enumerate(tiles):
                error_Cb = products.mm(w, feature_tDb[number], buffers.tile(len(w), tile))
                if products.shift is not None:
                    error_Cb += shift_B32[tile]
                error_Cb.exp2_()
                column_T, sample_T, error_T = entries.of(chunk.at.start // self.chunk_size, number)
                error_Cb[column_T, sample_T] = error_T
                multiply = products.add_mm if number else products.set_mm
                multiply(gradient_CD, products.exponentials(error_Cb), factor_tbD[number])
            if gain != 1.0:
                gradient_CD *= gain
            # Through w_hat = w / |w|: only what is orthogonal to the row moves it.
            along_C1 = torch.mul(gradient_CD, w_CD, out=buffers.scratch(len(w))).sum(1, keepdim=True)
            yield chunk, gradient_CD.addcmul_(w_CD, along_C1, value=-1).div_(norm_C1)

    def tile_length(self, samples: int) -> int:
        return -(-samples // max(1, -(-samples // self.tile_size)))

    def _tiles(self, samples: int) -> list[slice]:
        """Slices of equal length but for the last."""
        length = max(1, self.tile_length(samples))
        return [slice(at, min(at + length, samples)) for at in range(0, samples, length)]


class _OwnClasses:
    """Each sample's own class, whose exponential can be nearly all of the partition sum: left out of rounded products and added exactly."""

    def __init__(self, store: RowStore, x_BD: Tensor, own_B: Tensor, backend: ChunkedBackend, num_tiles: int) -> None:
        self._sample_T = ((own_B >= store.start) & (own_B < store.start + len(store))).nonzero()[:, 0]
        self._class_T = own_B[self._sample_T] - store.start
        self._score_T = score_pairs(store.rows_nD, x_BD, self._class_T, self._sample_T)
        self._row_TD = store.rows_nD[self._class_T.to(store.rows_nD.device)].to(x_BD.device).float()
        none_T = torch.full(self._class_T.shape, -torch.inf, dtype=backend.products.score_dtype, device=x_BD.device)
        length = backend.tile_length(len(x_BD))
        self._entries = Entries(self._class_T, self._sample_T, none_T, backend.chunk_size, length, num_tiles)

    def leave_out(self, score_Cb: Tensor, chunk: int, tile: int) -> None:
        column_T, sample_T, none_T = self._entries.of(chunk, tile)
        score_Cb[column_T, sample_T] = none_T

    def add(self, partition_B: Tensor, pull_BD: Tensor, temperature: float) -> None:
        exp_T = (self._score_T.double() / temperature).exp_()
        partition_B[self._sample_T] += exp_T
        norm_T1 = self._row_TD.norm(dim=1, keepdim=True).clamp_min_(EPS)
        pull_BD[self._sample_T] += self._row_TD / norm_T1 * exp_T.float()[:, None]


class Entries:
    """Values for single elements of the tiles, sorted by tile once. No element is named twice."""

    def __init__(self, class_T: Tensor, sample_T: Tensor, value_T: Tensor, chunk_size: int, tile_length: int, num_tiles: int) -> None:
        tile_T = class_T // chunk_size * num_tiles + sample_T // max(1, tile_length)
        tile_T, order_T = tile_T.sort(stable=True)
        self._parts = class_T[order_T] % chunk_size, sample_T[order_T] % max(1, tile_length), value_T[order_T]
        used, count = tile_T.unique_consecutive(return_counts=True)
        stops = count.cumsum(0).tolist()
        self._slices = {tile: slice(start, stop) for tile, start, stop in zip(used.tolist(), [0, *stops], stops, strict=False)}
        self._num_tiles = num_tiles

    def of(self, chunk: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
        """(class in the chunk, sample in the tile, value)."""
        mine = self._slices.get(chunk * self._num_tiles + tile, slice(0, 0))
        column_T, sample_T, value_T = (part[mine] for part in self._parts)
        return column_T, sample_T, value_T


class _Buffers:
    """Memory of a chunk and of a tile, taken once for a pass."""

    def __init__(self, chunk_size: int, rows: int, samples: int, embedding_size: int, device: torch.device, dtype: torch.dtype) -> None:
        self._unit_CD = torch.empty(rows, embedding_size, device=device)
        self._gradient_CD: Tensor | None = None
        self._scratch_CD: Tensor | None = None
        self._scores = torch.empty(rows * samples, dtype=dtype, device=device)

    def unit(self, rows_CD: Tensor) -> tuple[Tensor, Tensor]:
        """Norms [C, 1] and rows of unit norm [C, D]."""
        norm_C1 = torch.linalg.vector_norm(rows_CD, dim=1, keepdim=True).clamp_min_(EPS)
        return norm_C1, torch.div(rows_CD, norm_C1, out=self._unit_CD[: len(rows_CD)])

    def tile(self, rows: int, samples: slice) -> Tensor:
        length = samples.stop - samples.start
        return self._scores[: rows * length].view(rows, length)

    def gradient(self, rows: int) -> Tensor:
        if self._gradient_CD is None:
            self._gradient_CD = torch.empty_like(self._unit_CD)
        return self._gradient_CD[:rows]

    def scratch(self, rows: int) -> Tensor:
        if self._scratch_CD is None:
            self._scratch_CD = torch.empty_like(self._unit_CD)
        return self._scratch_CD[:rows]
