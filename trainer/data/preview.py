"""A contact sheet of what a run will see: its images, and beside each the views that its first epochs make of it.

The views are the run's own, drawn with its seed for the instance and the epoch, as uint8 before they are normalised. A row is an image:
first the whole of it in a frame, then its views, each with what was drawn for it: the part of the image, flips; the factors of brightness,
contrast and saturation (b, c, s) and the turn of the hue (h, of the circle), in the order in which they are done; what follows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from service.layout import write_whole
from service.spec import RunSpec
from trainer.data.augment import Colours, Geometry, apply_colours, apply_geometry, draw_colours, draw_geometry, view_draws, view_rng
from trainer.data.decode import Unreadable
from trainer.data.images import Images
from trainer.data.index import evenly_spaced
from trainer.data.reader import Reader, read_pixels
from trainer.errors import BadData

_LEAST_SIDE, _MOST_SIDE = 160, 256
"""Of a tile, in pixels: captions stay readable, and a sheet stays a picture that opens."""
_FONT, _FONT_SCALE, _LINE_HEIGHT, _NUM_LINES, _GAP = cv2.FONT_HERSHEY_SIMPLEX, 0.36, 14, 3, 6
_INK, _PAPER, _FRAME = (40, 40, 40), 255, 225


def write_preview(images: Images, spec: RunSpec, path: Path, num_images: int = 8, num_views: int = 8) -> list[str]:
    """Write the sheet to `path`, whole or not at all, in the format that its suffix names. Returns why images on it could not be read.

    Raises BadData where no picture can be written there.
    """
    sheet, unreadable = draw_preview(images, spec, num_images, num_views)
    try:
        written, data = cv2.imencode(path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    except cv2.error:
        written, data = False, np.empty(0, np.uint8)
    if not written:
        raise BadData(f"{str(path)!r} is no name of a picture that can be written: end it in .png, .jpg or .webp")
    try:
        write_whole(path, data.tobytes())
    except OSError as error:
        raise BadData(f"the preview cannot be written to {str(path)!r} ({error.strerror}): give another file") from None
    return unreadable


def draw_preview(images: Images, spec: RunSpec, num_images: int = 8, num_views: int = 8) -> tuple[np.ndarray, list[str]]:
    """[H, W, 3] uint8, red green blue: `num_images` rows, evenly spaced over the images, of `num_views` views; and why images could not
    be read. With V views of an image, of whichever size, epoch e makes the views e V to e V + V - 1 of a row."""
    reader, unreadable = Reader(images.index, round(spec.data.cache_gib * 2**30)), []
    side = min(max(spec.data.image_size, _LEAST_SIDE), _MOST_SIDE)
    rows = []
    for instance in evenly_spaced(len(images), num_images):
        name = images.name(instance)
        try:
            image = read_pixels(reader, int(images.rows([instance])[0]), spec.data.channels)
        except Unreadable as error:
            unreadable.append(str(error))
            blank = [_tile(None, side, [])] * num_views
            rows.append(np.hstack([_tile(None, side, [name, "cannot be read:", error.cause]), *blank]))
            continue
        original = _tile(_letterboxed(_shown(image), side), side, [name, f"{image.shape[1]} x {image.shape[0]}", f"instance {instance}"])
        rows.append(np.hstack([original, *(_view_tile(image, spec, instance, i, side) for i in range(num_views))]))
    return cv2.copyMakeBorder(np.vstack(rows), _GAP, 0, _GAP, 0, cv2.BORDER_CONSTANT, value=(_PAPER,) * 3), unreadable


def _view_tile(image: np.ndarray, spec: RunSpec, instance: int, i: int, side: int) -> np.ndarray:
    epoch, view = divmod(i, spec.num_views)
    kind = [kind for kind in spec.view_kinds for _ in range(kind.number)][view]
    draws = view_draws(view_rng(spec.seed, epoch, instance, view))
    cut = draw_geometry(spec.augmentation, *image.shape[:2], draws, kind.crop_scale)
    colours = draw_colours(spec.augmentation, draws, image.shape[2])
    pixels = apply_colours(apply_geometry(image, cut, kind.size), colours)
    size = f", {kind.size} px" if len(spec.view_kinds) > 1 else ""
    return _tile(_letterboxed(_shown(pixels), side), side, [f"{_about_geometry(cut, image)}{size}", *_about_colours(colours)])


def _about_geometry(cut: Geometry, image: np.ndarray) -> str:
    flips = ["flipped"] * cut.flips_left_right + ["upside down"] * cut.flips_upside_down
    return ", ".join([f"crop {100 * cut.height * cut.width / (image.shape[0] * image.shape[1]):.0f}%", *flips])


def _about_colours(colours: Colours) -> tuple[str, str]:
    """The amounts in the order in which they are done, and what follows them."""
    amounts = (
        f"b{colours.brightness:.2f}" if colours.brightness != 1 else "",
        f"c{colours.contrast:.2f}" if colours.contrast != 1 else "",
        f"s{colours.saturation:.2f}" if colours.saturation != 1 else "",
        f"h{colours.hue:+.2f}" if colours.hue else "",
    )
    rest = ["grey"] * colours.grayscale + [f"blur {colours.blur_sigma:.1f}"] * (colours.blur_sigma > 0) + ["solarised"] * colours.solarize
    return " ".join(amounts[i] for i in colours.order if amounts[i]) or "no jitter", ", ".join(rest)


def _shown(image: np.ndarray) -> np.ndarray:
    """[H, W, 3]: of another number of channels the first one, as grey."""
    return image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)


def _letterboxed(image: np.ndarray, side: int) -> np.ndarray:
    """The whole image in [side, side, 3]; enlarged pixels stay squares."""
    scale = side / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * scale)), max(1, round(image.shape[1] * scale))
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA)
    framed = np.full((side, side, 3), _FRAME, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    framed[top : top + height, left : left + width] = resized
    return framed


def _tile(pixels: np.ndarray | None, side: int, lines: Sequence[str]) -> np.ndarray:
    """With its caption below and a gap at the right: [side + captions, side + gap, 3]."""
    tile = np.full((side + _NUM_LINES * _LINE_HEIGHT + _GAP, side + _GAP, 3), _PAPER, np.uint8)
    tile[:side, :side] = _FRAME if pixels is None else pixels
    for i, line in enumerate(lines):
        at = 0, side + (i + 1) * _LINE_HEIGHT - 3
        cv2.putText(tile, _fitting(line, side), at, _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)
    return tile


def _fitting(text: str, width: int) -> str:
    """The end of a text that is too wide: of a path, the name. The font has ASCII alone."""
    shown = text.encode("ascii", "replace").decode()
    cut = shown
    while cv2.getTextSize(cut, _FONT, _FONT_SCALE, 1)[0][0] > width:
        shown = shown[1:]
        cut = f"...{shown}"
    return cut
