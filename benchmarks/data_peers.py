"""The other data paths of the benchmark, each as its documentation has it: recipe moco-v2 ends in normalised float32 batches on the
device, crop in uint8 ones (kornia in float32, which it needs).

torchvision       v2 on uint8 tensors; decoded by decode_jpeg (which needs a torchvision of PyTorch's own build) or Pillow, the faster one
torchvision-pil   transforms on Pillow images, as MoCo's code has them
albumentations    on arrays decoded by OpenCV
kornia            on whole batches: in each loader process on a CPU, on the device otherwise; decoded by OpenCV; other sizes than the first
                  photograph's are brought to it before
webdataset        its own loader over tar files, decoded by OpenCV, augmented as `torchvision`

Blurs have kernels of 13 pixels, three times the largest sigma to each side, which is what ours computes (MoCo's 23 would cost them more).
"""

from __future__ import annotations

import importlib
import io
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

BATCH = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, RATIO, FLIP, JITTER, COLOURS, GRAY, BLUR, SIGMA, KERNEL = (
    (0.2, 1.0),
    (3 / 4, 4 / 3),
    0.5,
    0.8,
    (0.4, 0.4, 0.4, 0.1),
    0.2,
    0.5,
    (0.1, 2.0),
    13,
)


class Unavailable(Exception):
    """Why a row cannot be measured here."""


@dataclass(frozen=True)
class Work:
    """What every row is given."""

    photos: str
    """Folder of the images."""
    tars: str
    """Folder of the same files in tars."""
    packed: str
    """Folder of the same images packed to 256 pixels."""
    recipe: str
    """crop: decode, random resized crop, flip; moco-v2: all."""
    size: int
    device: str

    @property
    def files(self) -> list[str]:
        return sorted(str(path) for path in Path(self.photos).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


Batches = Callable[[int], Iterator[Tensor]]
"""Of a number of loader processes, batches [b, 3, size, size] on the device, without end."""


def package(name: str) -> ModuleType:
    from trainer.torchvision_shim import declare_missing_operators

    declare_missing_operators()
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network otherwise
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Unavailable(f"not installed ({error.name})") from None


class Files(Dataset[Tensor]):
    """`make` of each file's bytes."""

    def __init__(self, files: list[str], make: Callable[[bytes], Any]) -> None:
        self.files, self.make = files, make

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.make(Path(self.files[i]).read_bytes())


class Forever(Sampler[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(0)
        while True:
            yield draw.randrange(self.length)


def loaded(work: Work, make: Callable[[bytes], Any], collate: Callable[[list[Any]], Tensor] | None = None) -> Batches:
    files = work.files
    on_gpu = work.device != "cpu"

    def batches(num_workers: int) -> Iterator[Tensor]:
        loader = DataLoader(
            Files(files, make), BATCH, sampler=Forever(len(files)), num_workers=num_workers, collate_fn=collate, pin_memory=on_gpu,
            worker_init_fn=one_thread,
        )  # fmt: skip
        for batch in loader:
            yield batch.to(work.device, non_blocking=True)

    return batches


def one_thread(_: int = 0) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def read_rgb(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def torchvision(work: Work) -> Batches:
    transform, decode = torchvision_v2(work), fastest_decoder(work.files)
    return loaded(work, lambda data: transform(decode(data)))


def torchvision_v2(work: Work) -> Callable[[Tensor], Tensor]:
    package("torchvision")
    v2 = package("torchvision.transforms.v2")
    steps = [v2.RandomResizedCrop(work.size, SCALE, RATIO, antialias=True)]
    if work.recipe == "moco-v2":
        steps += [v2.RandomApply([v2.ColorJitter(*COLOURS)], JITTER), v2.RandomGrayscale(GRAY)]
        steps += [v2.RandomApply([v2.GaussianBlur(KERNEL, SIGMA)], BLUR)]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)] if work.recipe == "moco-v2" else []
    return v2.Compose([*steps, v2.RandomHorizontalFlip(FLIP), *last])


def fastest_decoder(files: list[str]) -> Callable[[bytes], Tensor]:
    """Of torchvision's two, by a few images."""
    from PIL import Image

    tv_io, functional = package("torchvision.io"), package("torchvision.transforms.v2.functional")
    decoders = [
        lambda data: functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")),
        lambda data: tv_io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), tv_io.ImageReadMode.RGB),
    ]
    sample, taken = [Path(file).read_bytes() for file in files[:32]], []
    for decoder in decoders:
        try:
            decoder(sample[0])
            begun = time.perf_counter()
            for data in sample:
                decoder(data)
            taken.append(time.perf_counter() - begun)
        except RuntimeError:  # its image extension is of another build
            taken.append(float("inf"))
    return decoders[taken.index(min(taken))]


def torchvision_pil(work: Work) -> Batches:
    from PIL import Image, ImageFilter

    package("torchvision")
    t = package("torchvision.transforms")
    steps = [t.RandomResizedCrop(work.size, SCALE, RATIO)]
    if work.recipe == "moco-v2":
        steps += [t.RandomApply([t.ColorJitter(*COLOURS)], JITTER), t.RandomGrayscale(GRAY)]
        blur = t.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA))))
        steps += [t.RandomApply([blur], BLUR)]
    last = [t.ToTensor(), t.Normalize(MEAN, STD)] if work.recipe == "moco-v2" else [t.PILToTensor()]
    transform = t.Compose([*steps, t.RandomHorizontalFlip(FLIP), *last])
    return loaded(work, lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB")))


def albumentations(work: Work) -> Batches:
    a, to_tensor = package("albumentations"), package("albumentations.pytorch")
    steps = [a.RandomResizedCrop((work.size, work.size), SCALE, RATIO), a.HorizontalFlip(p=FLIP)]
    if work.recipe == "moco-v2":
        steps += [a.ColorJitter(*COLOURS, p=JITTER), a.ToGray(p=GRAY), a.GaussianBlur(blur_limit=0, sigma_limit=SIGMA, p=BLUR)]
    last = [a.Normalize(MEAN, STD)] if work.recipe == "moco-v2" else []
    transform = a.Compose([*steps, *last, to_tensor.ToTensorV2()])
    return loaded(work, lambda data: transform(image=read_rgb(data))["image"])


def kornia(work: Work) -> Batches:
    k = package("kornia.augmentation")
    steps = [k.RandomResizedCrop((work.size, work.size), SCALE, RATIO), k.RandomHorizontalFlip(p=FLIP)]
    if work.recipe == "moco-v2":
        steps += [k.ColorJitter(*COLOURS, p=JITTER), k.RandomGrayscale(p=GRAY), k.RandomGaussianBlur((KERNEL, KERNEL), SIGMA, p=BLUR)]
    mean, std = torch.tensor(MEAN, device=work.device), torch.tensor(STD, device=work.device)
    transform = torch.nn.Sequential(*steps, *([k.Normalize(mean, std)] if work.recipe == "moco-v2" else []))
    height, width = read_rgb(Path(work.files[0]).read_bytes()).shape[:2]

    def pixels(data: bytes) -> np.ndarray:
        image = read_rgb(data)
        return image if image.shape[:2] == (height, width) else cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    @torch.no_grad()
    def augmented(batch: Tensor) -> Tensor:
        return transform(batch.permute(0, 3, 1, 2).float().div_(255))

    def stack(images: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(images))

    if work.device == "cpu":
        return loaded(work, pixels, lambda images: augmented(stack(images)))
    batches = loaded(work, pixels, stack)
    return lambda num_workers: map(augmented, batches(num_workers))


def webdataset(work: Work) -> Batches:
    wds, transform = package("webdataset"), torchvision_v2(work)
    urls = sorted(str(path) for path in Path(work.tars).glob("*.tar"))

    def make(sample: tuple[bytes]) -> Tensor:
        return transform(torch.from_numpy(read_rgb(sample[0])).permute(2, 0, 1))

    def batches(num_workers: int) -> Iterator[Tensor]:
        dataset = (
            wds.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(100).to_tuple("jpg").map(make).batched(BATCH, torch.stack)
        )
        loader = wds.WebLoader(dataset, batch_size=None, num_workers=num_workers, worker_init_fn=one_thread)
        for batch in loader:
            yield batch.to(work.device, non_blocking=True)

    return batches


PEERS: dict[str, Callable[[Work], Batches]] = {
    "torchvision": torchvision,
    "torchvision-pil": torchvision_pil,
    "albumentations": albumentations,
    "kornia": kornia,
    "webdataset": webdataset,
}
