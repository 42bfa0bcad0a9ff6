"""Wrong specifications and what each is told. `python -m tests.service.wrong_specs` writes docs/errors.md from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from api.bodies import read_body
from service.admission import admit
from service.errors import FieldError, InvalidSpec

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
ROOT = "/data"
"""What stands for the folder of `make_folders` in documents and messages."""
RIGHT: dict[str, dict[str, Any]] = {
    "data": {"path": f"{ROOT}/images", "image_size": 32},
    "backbone": {"name": "resnet18"},
    "optimizer": {"global_batch_size": 8},
    "classifier": {"hardest_k": 5},
    "schedule": {"epochs": 10, "warmup_epochs": 1},
}
"""Correct, with the 12 images of `make_folders`; each case below spoils it."""


@dataclass(frozen=True)
class Wrong:
    title: str
    change: Mapping[str, Any] | str
    """Laid over RIGHT, with None where a key is taken out; a string is the whole body."""
    field: str
    fragment: str
    """Of the message."""


CASES = [
    Wrong("a key that does not exist", {"optimizer": {"learning_rat": 0.1}}, "optimizer.learning_rat", "did you mean 'learning_rate'?"),
    Wrong("a section that does not exist", {"optimiser": {"momentum": 0.9}}, "optimiser", "did you mean 'optimizer'?"),
    Wrong("no data", {"data": None}, "data", "is required. The images: name"),
    Wrong("no schedule", {"schedule": None}, "schedule", "is required. How long"),
    Wrong("a word for a number", {"schedule": {"epochs": "ten"}}, "schedule.epochs", "'ten': input should be a valid integer"),
    Wrong(
        "a temperature outside its bounds", {"classifier": {"temperature": 0}}, "classifier.temperature", "greater than or equal to 0.03"
    ),
    Wrong("all of the target smoothed away", {"classifier": {"smoothing": 1.0}}, "classifier.smoothing", "less than 1"),
    Wrong("a learning rate that is not a number", {"optimizer": {"learning_rate": "nan"}}, "optimizer.learning_rate", "finite number"),
    Wrong("a preset that does not exist", {"preset": "imagenet"}, "preset", "'imagenet-1m', 'cifar10' or 'demo'"),
    Wrong("an architecture that does not exist", {"backbone": {"name": "resnet8"}}, "backbone.name", "did you mean 'resnet"),
    Wrong("epochs and steps", {"schedule": {"steps": 100}}, "schedule.epochs", "give exactly one of them"),
    Wrong(
        "a warm-up longer than the run", {"schedule": {"warmup_epochs": 20}}, "schedule.warmup_epochs", "longer than the run's 10 epochs"
    ),
    Wrong("a batch that the ranks cannot share", {"resources": {"ranks_per_node": 3}}, "optimizer.global_batch_size", "use 6 or 9"),
    Wrong(
        "too few images on each rank",
        {"resources": {"ranks_per_node": 4}},
        "optimizer.global_batch_size",
        "use at least 16, or fewer ranks",
    ),
    Wrong(
        "as many hardest classes as images used",
        {"data": {"limit": 8}, "classifier": {"hardest_k": 8}},
        "classifier.hardest_k",
        "at most 7",
    ),
    Wrong("more hardest classes than images in the folder", {"classifier": {"hardest_k": 50}}, "classifier.hardest_k", "with 12 images"),
    Wrong("a batch larger than the folder", {"optimizer": {"global_batch_size": 16}}, "optimizer.global_batch_size", "use at most 12"),
    Wrong(
        "a range the wrong way round", {"augmentation": {"crop_scale": [1.0, 0.2]}}, "augmentation.crop_scale", "the smaller number first"
    ),
    Wrong(
        "small views that are not smaller",
        {"augmentation": {"small_views": 2, "small_size": 32}},
        "augmentation.small_size",
        "use at most 31",
    ),
    Wrong("a channel without spread", {"data": {"std": [0.2, 0.0, 0.2]}}, "data.std", "every channel must be greater than 0"),
    Wrong("half precision without ZeRO", {"precision": "fp16"}, "zero_stage", "set zero_stage to 1"),
    Wrong(
        "half precision on a CPU",
        {"precision": "fp16", "zero_stage": 1, "resources": {"device": "cpu"}},
        "precision",
        "use fp32 or bf16",
    ),
    Wrong("partitioned rows without ZeRO-3", {"classifier": {"parallelism": "zero3"}}, "classifier.parallelism", "set zero_stage to 3"),
    Wrong(
        "rows in 16 bits that DeepSpeed is to keep",
        {"classifier": {"parallelism": "zero3", "rows_dtype": "bf16"}, "zero_stage": 3},
        "classifier.rows_dtype",
        "or rows_dtype to fp32",
    ),
    Wrong(
        "rows on the host that are to be searched",
        {"classifier": {"rows_on": "host", "hardest_by": "class_similarity"}},
        "classifier.rows_on",
        "or rows_on to device",
    ),
    Wrong(
        "a step in more parts than it has images for",
        {"optimizer": {"gradient_accumulation_steps": 4}},
        "optimizer.gradient_accumulation_steps",
        "another divisor of",
    ),
    Wrong(
        "partitioned rows in half precision",
        {"precision": "fp16", "zero_stage": 3, "classifier": {"parallelism": "zero3"}},
        "classifier.parallelism",
        "set parallelism to class, or precision to bf16",
    ),
    Wrong("queries without a bank", {"evaluation": {"queries": f"{ROOT}/images"}}, "evaluation.queries", "name the labelled folder"),
    Wrong("more ranks at least than at most", {"resources": {"min_ranks": 2}}, "resources.min_ranks", "lower it"),
    Wrong("no time at all", {"resources": {"max_hours": 0}}, "resources.max_hours", "greater than 0"),
    Wrong("a priority out of range", {"priority": 1000}, "priority", "less than or equal to 100"),
    Wrong("a label that is no text", {"labels": {"seed": 1}}, "labels.seed", "valid string"),
    Wrong("weights of one's own", {"backbone": {"args": {"pretrained": True}}}, "backbone.args.pretrained", "leave it out"),
    Wrong("a relative path", {"data": {"path": "images"}}, "data.path", "give the absolute path"),
    Wrong("a path outside the allowed folders", {"data": {"path": "/home/images"}}, "data.path", "where data must lie"),
    Wrong("a path that climbs out of them", {"data": {"path": f"{ROOT}/../home"}}, "data.path", "where data must lie"),
    Wrong("a link to elsewhere", {"data": {"path": f"{ROOT}/elsewhere"}}, "data.path", "where data must lie"),
    Wrong("a folder that does not exist", {"data": {"path": f"{ROOT}/imagse"}}, "data.path", "no such folder"),
    Wrong(
        "a file of another kind", {"data": {"path": f"{ROOT}/images/0.png"}}, "data.path", "a file, and none of .txt, .csv, .parquet, .tar"
    ),
    Wrong("a chained address", {"data": {"path": "simplecache::file:///etc"}}, "data.path", "give the absolute path"),
    Wrong("data elsewhere", {"data": {"path": "s3://other/images"}}, "data.path", "where data must lie: name data there"),
    Wrong("a truth value for a number", {"seed": True}, "seed", "seed is true"),
    Wrong("a mean too few", {"data": {"channels": 4, "mean": [0.1, 0.2, 0.3]}}, "data.mean", "mean has 3 values with 4 channels"),
    Wrong(
        "a stride beyond the window",
        {"data": {"window": 100, "stride": 200}},
        "data.stride",
        "stride is 200, longer than the window of 100",
    ),
    Wrong("a folder without images", {"data": {"path": f"{ROOT}/notes"}}, "data.path", "no image (jpg, jpeg"),
    Wrong(
        "labels without class folders", {"evaluation": {"labelled": f"{ROOT}/images"}}, "evaluation.labelled", "one with images per class"
    ),
    Wrong("a key twice", '{"seed": 1, "seed": 2}', "", "stands twice"),
    Wrong("no mapping", "[]", "", "this is a list"),
    Wrong("no JSON", '{"data": {"path": "/data/images"},}', "", "not JSON at line 1, column"),
]


def make_folders(root: Path) -> None:
    """12 files that look like images, a folder without any, and a link out of `root`."""
    (root / "images").mkdir(parents=True)
    for number in range(12):
        (root / "images" / f"{number}.png").touch()
    (root / "notes").mkdir()
    (root / "notes" / "notes.txt").touch()
    (root / "elsewhere").symlink_to("/")


def body(case: Wrong, root: Path) -> str:
    """What is posted, with `root` for ROOT."""
    text = case.change
    if not isinstance(text, str):
        document: dict[str, Any] = dict(RIGHT)
        for key, value in text.items():
            document[key] = {**RIGHT.get(key, {}), **value} if isinstance(value, Mapping) else value
        text = json.dumps({key: value for key, value in document.items() if value is not None})
    return text.replace(ROOT, str(root))


def refusals(case: Wrong, root: Path) -> list[FieldError]:
    try:
        admit(read_body(body(case, root).encode(), "application/json"), shared_files=True, roots=[str(root)])
    except InvalidSpec as error:
        return error.errors
    raise AssertionError(f"accepted: {case.title}")


HEAD = """\
# Wrong specifications, and what each is told

Written by `python -m tests.service.wrong_specs`; a test holds it to what the code says. Each case spoils this correct
specification, whose folder has 12 images. The API sees the workers' files, and lets data lie below /data only:

```yaml
{right}```

The answer is 422 with a problem document (RFC 9457); each mistake is in its `errors` as `field`, `pointer`, `value` and
`message`. `millionway submit` prints the same messages.

| # | mistake | what was written | field | message |
|---|---|---|---|---|
"""


def render() -> str:
    lines = [HEAD.format(right=yaml.safe_dump(RIGHT, sort_keys=False))]
    with tempfile.TemporaryDirectory() as directory:
        make_folders(Path(directory))
        for number, case in enumerate(CASES, 1):
            written = case.change if isinstance(case.change, str) else json.dumps(case.change)
            errors = refusals(case, Path(directory))
            fields = "<br>".join(f"`{error.field}`" if error.field else "" for error in errors)
            messages = "<br>".join(str(error).replace(directory, ROOT).replace("|", "\\|") for error in errors)
            lines.append(f"| {number} | {case.title} | `{written}` | {fields} | {messages} |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
