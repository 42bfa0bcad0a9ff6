"""What the first bytes of an image file say of it, without decoding: format, channels, bits per channel, EXIF orientation."""

from __future__ import annotations

import struct
from typing import NamedTuple

FORMATS = ("unknown", "jpeg", "png", "webp", "bmp", "tiff", "gif", "jpeg 2000", "avif or heif")


class Header(NamedTuple):
    """0 where the file does not say."""

    format: str
    channels: int = 0
    """As decoded: 3 for a palette."""
    depth: int = 0
    """Bits of a channel."""
    orientation: int = 0
    """EXIF's: 1 is upright, 2 to 8 are mirrored or turned."""
    height: int = 0
    """As stored, before it is turned; this and the next of JPEG files alone."""
    width: int = 0


def read_header(data: bytes) -> Header:
    """By the magic bytes, whatever the file is called. A damaged header gives what could be read of it."""
    for magic, name, read in (
        (b"\xff\xd8\xff", "jpeg", _jpeg),
        (b"\x89PNG\r\n\x1a\n", "png", _png),
        (b"BM", "bmp", _bmp),
        (b"II*\0", "tiff", _tiff),
        (b"MM\0*", "tiff", _tiff),
    ):
        if data.startswith(magic):
            return _careful(name, read, data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _careful("webp", _webp, data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("gif", 3, 8)
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return Header("jpeg 2000")
    return Header("avif or heif" if data[4:8] == b"ftyp" else "unknown")


def upright_shape(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that stands upright, before it is decoded."""
    header = read_header(data)
    return (header.height, header.width) if header.height and header.width and header.orientation <= 1 else None


def _careful(name: str, read: object, data: bytes) -> Header:
    assert callable(read)
    try:
        return Header(name, *read(data))
    except (struct.error, IndexError):
        return Header(name)


def _jpeg(data: bytes) -> tuple[int, int, int, int, int]:
    at, orientation = 2, 0
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            return data[at + 9], data[at + 4], orientation, *struct.unpack_from(">HH", data, at + 5)
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" and not orientation:
            orientation = _exif(data[at + 10 : at + 2 + length])
        at += 2 + length
    return 0, 0, orientation, 0, 0


def _png(data: bytes) -> tuple[int, int, int]:
    depth, color = data[24], data[25]
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(color, 0)
    at, orientation = 8, 0
    while at + 8 <= len(data) and (kind := data[at + 4 : at + 8]) != b"IDAT":
        (length,) = struct.unpack_from(">I", data, at)
        if kind == b"eXIf":
            orientation = _exif(data[at + 8 : at + 8 + length])
        at += 12 + length
    return channels, 8 if color == 3 else depth, orientation


def _webp(data: bytes) -> tuple[int, int, int]:
    kind = data[12:16]
    if kind == b"VP8L":
        return 4 if struct.unpack_from("<I", data, 21)[0] >> 28 & 1 else 3, 8, 0
    if kind != b"VP8X":
        return 3, 8, 0
    at, orientation = 12, 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
            orientation = _exif(exif.removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 4 if data[20] & 0x10 else 3, 8, orientation


def _bmp(data: bytes) -> tuple[int, int, int]:
    (bits,) = struct.unpack_from("<H", data, 28)
    return 4 if bits == 32 else 3, 8, 0


def _tiff(data: bytes) -> tuple[int, int, int]:
    tags = _tiff_tags(data, {258, 262, 274, 277})
    channels = 3 if tags.get(262) == 3 else tags.get(277, 1)  # 262, the colour space, is 3: a palette
    return channels, tags.get(258, 1), tags.get(274, 0)


def _exif(data: bytes) -> int:
    try:
        return _tiff_tags(data, {274}).get(274, 0)
    except struct.error:
        return 0


def _tiff_tags(data: bytes, wanted: set[int]) -> dict[int, int]:
    """First value of 16-bit tags of the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    found = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        if tag in wanted and kind == 3:
            where = entry + 8 if length <= 2 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
            (found[tag],) = struct.unpack_from(f"{order}H", data, where)
    return found
