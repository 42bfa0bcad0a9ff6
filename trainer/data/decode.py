"""Bytes of an image file as pixels, and why they are none."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np

from trainer.data.complaints import heard


class Unreadable(Exception):
    """An image that cannot be used. `cause` is one of few words, to count by; the message says more."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


_REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


_DAMAGE = re.compile(r"Corrupt JPEG data: (premature end|bad Huffman|found marker).*|TIFF_Error.*")
"""After these a part of the picture is missing."""
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes.*")
"""Many sound files have some; where they are more than this part of the file they are the picture's:"""
_MOST_EXTRANEOUS = 0.1


def decode(data: bytes, channels: int = 3, reduce: int = 1) -> np.ndarray:
    """Pixels [H, W, channels], uint8; three channels are red green blue. Raises Unreadable.

    `reduce` 2, 4, 8: a JPEG of three channels is decoded at that part of its size, from fewer of its coefficients and in less time.

    EXIF orientation is applied and 16 bits become 8. With 3 channels grey becomes three equal ones, CMYK is converted, alpha is dropped;
    with another number the file's own channels are taken, in its order (alpha is the last), and there must be as many.
    """
    if not data:
        raise Unreadable("empty", "the file is empty")
    if is_truncated(data):
        raise Unreadable("truncated", f"the file ends too early, after {len(data):,} bytes")
    if channels not in (1, 3) and data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _in_8_bits(_tiff(data), channels)
    flags = {1: cv2.IMREAD_GRAYSCALE, 3: _REDUCED[reduce]}.get(channels, cv2.IMREAD_UNCHANGED)
    try:
        pixels, complaint = heard(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), flags))
    except cv2.error as error:
        raise Unreadable("undecodable", " ".join(str(error).split())) from None
    if pixels is None:
        raise Unreadable("undecodable", f"its {len(data):,} bytes are no image, or damaged")
    if complaint:
        _check_complaint(complaint, len(data))
    if channels == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    if channels == 4 and pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    return _in_8_bits(pixels[..., None] if pixels.ndim == 2 else pixels, channels)


def _check_complaint(complaint: str, num_bytes: int) -> None:
    damage = _DAMAGE.search(complaint)
    if not damage and (extraneous := _EXTRANEOUS.search(complaint)) and int(extraneous[1]) > _MOST_EXTRANEOUS * num_bytes:
        damage = extraneous
    if damage:
        raise Unreadable("damaged", f"a part of it cannot be decoded: {' '.join(damage[0].split())}")


def _tiff(data: bytes) -> np.ndarray:
    """[H, W, C] of any number of channels, which OpenCV does not take; interleaved or plane by plane."""
    import tifffile  # a loader process that never sees such a file is smaller without

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            pixels, axes = page.asarray(), page.axes
    except Exception as error:  # whatever it raises on a damaged file, or a compression for which it needs another package
        raise Unreadable("undecodable", f"{type(error).__name__}: {' '.join(str(error).split())}") from None
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    elif axes == "YX":
        pixels = pixels[..., None]
    elif axes != "YXS":
        raise Unreadable("undecodable", f"its axes are {axes}, and an image has height, width and channels")
    return np.ascontiguousarray(pixels)


def _in_8_bits(pixels: np.ndarray, channels: int) -> np.ndarray:
    if pixels.shape[2] != channels:
        raise Unreadable("other channels", f"it has {pixels.shape[2]} channels and data.channels is {channels}")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise Unreadable("other depth", f"its pixels are {pixels.dtype}, and 8 or 16 bits are taken")
    return pixels


_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _has_end(data: bytes) -> bool:
    """Whether the markers of a JPEG lead to its end."""
    at = 2
    while found := _MARKER.search(data, at):
        kind = data[found.start() + 1]
        if kind == 0xD9:
            return True
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return False


def is_truncated(data: bytes) -> bool:
    """Whether a JPEG, PNG or WebP file lacks its end: decoders fill what is missing with grey, and say nothing."""
    if data.startswith(b"\xff\xd8"):  # the end of the image stands behind its last scan; a preview has an end of its own before that
        if data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > max(2, data.rfind(b"\xff\xda")):
            return False
        return not _has_end(data)  # a film behind the picture, as telephones write it, has such bytes anywhere
    if data.startswith(b"\x89PNG"):
        return data.rfind(b"IEND") < 0
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return False
