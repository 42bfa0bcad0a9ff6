"""The demonstration's images: a dependency's handwritten digits as an image folder, or a folder of the user's."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from service.errors import MillionwayError
from service.spec import RunSpec, parse_spec
from trainer.data.sources import IMAGE_SUFFIXES, list_source
from trainer.errors import TrainerError

DEMO_NAME = "make-demo"
"""Of no other run, since a new demonstration cancels an unfinished old one."""
MAX_IMAGES = 3000
"""Of a larger folder, so that the demonstration stays a matter of minutes on two cores."""
DIGIT_SIZE = 32
TEST_EVERY = 5
MAX_BATCH, MIN_BATCH, STEPS_PER_EPOCH = 128, 16, 8
MIN_PER_RANK = 4
"""Images of a batch on each rank; the specification refuses less."""


@dataclass(frozen=True)
class DemoData:
    images: Path
    labelled: Path | None
    """None: without class folders there is no kNN accuracy."""
    queries: Path | None
    num_images: int


def write_digits(root: Path) -> Path:
    """Write scikit-learn's 1,797 digits as root/{train,test}/<class>/<number>.png, whole or not at all. Returns `root`.

    Of each class every fifth image is a test image.
    """
    if root.is_dir():
        return root
    import cv2
    from sklearn.datasets import load_digits

    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    digits = load_digits()
    seen = [0] * 10
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "test" if seen[label] % TEST_EVERY == TEST_EVERY - 1 else "train"
        seen[label] += 1
        folder = partial / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        image = cv2.resize((pixels * (255 / 16)).astype("uint8"), (DIGIT_SIZE, DIGIT_SIZE), interpolation=cv2.INTER_CUBIC)
        if not cv2.imwrite(str(folder / f"{number:04d}.png"), image):
            raise MillionwayError(f"{folder} cannot be written: make room, or give another --state-dir")
    partial.rename(root)
    return root


def inspect(folder: Path) -> DemoData:
    """How to use a folder: its train/ and test/ if both have class folders, else its class folders, else as plain images.

    Raises MillionwayError where it holds no images.
    """
    folder = folder.absolute()
    train, test = folder / "train", folder / "test"
    split = len(_class_folders(train)) >= 2 and len(_class_folders(test)) >= 2
    images = train if split else folder
    try:
        num_images = len(list_source(str(images)).names)
    except TrainerError as error:
        raise MillionwayError(f"DATA={folder}: {error}") from None
    if num_images < MIN_PER_RANK:
        raise MillionwayError(f"DATA={folder}: {num_images} images are too few to train on: at least {MIN_PER_RANK}, better hundreds")
    classes = _class_folders(images)
    # The evaluation takes a folder of nothing but class folders, and 5 images where a part of them serves as queries.
    has_labels = len(classes) >= 2 and num_images >= 5 and not _images_in(images)
    return DemoData(images, images if has_labels else None, test if split and has_labels else None, num_images)


def demo_spec(data: DemoData, slots: int) -> RunSpec:
    """The demo preset on this data, made to fit its number of images and this machine."""
    num_images = min(data.num_images, MAX_IMAGES)
    ranks = 2 if slots >= 2 and num_images >= 2 * MIN_PER_RANK else 1
    batch = min(MAX_BATCH, max(MIN_BATCH, num_images // STEPS_PER_EPOCH), num_images) // ranks * ranks
    evaluation = {"labelled": data.labelled, "queries": data.queries}
    return parse_spec(
        {
            "preset": "demo",
            "name": DEMO_NAME,
            "data": {"path": str(data.images), "limit": num_images if num_images < data.num_images else None},
            "classifier": {"hardest_k": min(50, num_images - 1)},
            "optimizer": {"global_batch_size": batch},
            "resources": {"ranks_per_node": ranks},
            "evaluation": {"limit": MAX_IMAGES, **{name: str(path) for name, path in evaluation.items() if path}},
        }
    )


def _class_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inside = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [entry for entry in inside if any(path.suffix.lower() in IMAGE_SUFFIXES for path in entry.rglob("*"))]


def _images_in(folder: Path) -> bool:
    return any(entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())
