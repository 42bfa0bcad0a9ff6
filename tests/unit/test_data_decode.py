"""Decoding images."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.images import noise, write_image
from trainer.data.complaints import heard
from trainer.data.decode import Unreadable, decode


def test_pixels_are_red_green_blue_as_stored(tmp_path: Path) -> None:
    """Oracle: Pillow."""
    for name in ("a.png", "a.bmp", "a.tiff", "a.jpg"):
        write_image(tmp_path / name, cv2.GaussianBlur(noise(1, 20, 31), (0, 0), 3))
        read = decode((tmp_path / name).read_bytes())
        assert read.dtype == np.uint8
        assert read.shape == (20, 31, 3)
        assert np.abs(read.astype(int) - np.asarray(Image.open(tmp_path / name).convert("RGB"))).max() <= 2


def test_grey_palette_alpha_and_16_bit_images_become_three_channels_of_8_bits(tmp_path: Path) -> None:
    """Grey is repeated, a palette looked up, alpha dropped, of 16 bits the upper 8 kept."""
    pixels = noise(2)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(decode((tmp_path / "grey.png").read_bytes()), pixels[..., :1].repeat(3, axis=2))
    palette = Image.fromarray(pixels).quantize(16)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(decode((tmp_path / "palette.png").read_bytes()), np.asarray(palette.convert("RGB")))
    Image.fromarray(np.dstack([pixels, pixels[..., 0]])).save(tmp_path / "alpha.png")
    assert np.array_equal(decode((tmp_path / "alpha.png").read_bytes()), pixels)
    deep = pixels.astype(np.uint16) << 8
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep[..., ::-1])
    assert np.array_equal(decode((tmp_path / "deep.png").read_bytes()), pixels)


def test_a_photograph_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    """EXIF orientation 6: turn by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.full((10, 30, 3), 200, np.uint8))
    image.save(tmp_path / "sideways.jpg", exif=exif)
    assert decode((tmp_path / "sideways.jpg").read_bytes()).shape == (30, 10, 3)


def test_cmyk_becomes_red_green_blue(tmp_path: Path) -> None:
    """Oracle: Pillow's conversion, from which the colour management of a decoder may differ a little."""
    image = Image.fromarray(cv2.GaussianBlur(noise(4, 32, 32), (0, 0), 4)).convert("CMYK")
    image.save(tmp_path / "print.jpg", quality=95)
    read = decode((tmp_path / "print.jpg").read_bytes())
    expected = np.asarray(Image.open(tmp_path / "print.jpg").convert("RGB"))
    assert np.abs(read.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(("suffix", "mode", "channels"), [("png", "L", 1), ("png", "RGBA", 4), ("tiff", "RGBA", 4), ("tiff", "LA", 2)])
def test_another_number_of_channels_is_taken_as_the_file_has_them(suffix: str, mode: str, channels: int) -> None:
    """Oracle: Pillow, which writes them. A file with another number is refused with both."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze(), mode).save(stream, suffix)
    assert np.array_equal(decode(stream.getvalue(), channels), pixels)
    with pytest.raises(Unreadable, match=rf"it has {channels} channels and data.channels is 5"):
        decode(stream.getvalue(), 5)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_satellites_bands_are_taken_interleaved_or_plane_by_plane(planar: str, dtype: type) -> None:
    """Eight of them; 16 bits become 8."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (12, 10, 8), dtype=dtype)
    stream = io.BytesIO()
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(stream, stored, photometric="minisblack", planarconfig=planar)
    assert np.array_equal(decode(stream.getvalue(), 8), pixels if dtype == np.uint8 else (pixels >> 8).astype(np.uint8))
    with pytest.raises(Unreadable):
        decode(stream.getvalue()[:200], 8)


@pytest.mark.parametrize(
    ("name", "damage", "cause"),
    [
        ("a.png", lambda data: b"", "empty"),
        ("a.jpg", lambda data: b"this is no image", "undecodable"),
        ("a.png", lambda data: data[: len(data) // 2], "truncated"),
        ("a.jpg", lambda data: data[: len(data) // 2], "truncated"),
        ("a.jpg", lambda data: data[:-2], "truncated"),
        ("a.webp", lambda data: data[: len(data) // 2], "truncated"),
        ("a.png", lambda data: data[:30] + bytes(60) + data[90:], "undecodable"),
        ("a.jpg", lambda data: data[:20] + bytes(300) + data[320:], "undecodable"),
        ("a.jpg", lambda data: data[:1500] + b"\xff" * 512 + data[2012:], "damaged"),
        ("a.jpg", lambda data: data[:1500] + bytes(2000) + data[3500:], "damaged"),
        ("a.tiff", lambda data: data[:1500] + bytes(512) + data[2012:], "damaged"),
    ],
)
def test_a_damaged_image_is_refused_with_a_cause(tmp_path: Path, name: str, damage: Callable[[bytes], bytes], cause: str) -> None:
    """Few words, to count by. A decoder alone would give the half of an image that ends too early."""
    data = write_image(tmp_path / name, noise(3, 60, 60)).read_bytes()
    decode(data)
    with pytest.raises(Unreadable) as refused:
        decode(damage(data))
    assert refused.value.cause == cause


def test_what_the_decoder_complains_of_still_goes_to_the_log_and_alone_does_not_condemn(capfd: pytest.CaptureFixture[str]) -> None:
    """Some bytes that belong to nothing, as cameras write them before the end. A sound image then hears nothing of the one before."""
    data = cv2.imencode(".jpg", noise(3, 60, 60))[1].tobytes()
    assert np.array_equal(decode(data[:-2] + bytes(50) + data[-2:]), decode(data))
    assert "extraneous bytes before marker" in capfd.readouterr().err
    assert heard(lambda: 7) == (7, "")


def test_a_full_disk_under_the_log_costs_no_image() -> None:
    """Neither the damaged one's own cause, nor the sound one after it."""
    data = cv2.imencode(".jpg", noise(3, 60, 60))[1].tobytes()
    log, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    try:
        with pytest.raises(Unreadable, match="a part of it cannot be decoded"):
            decode(data[:1500] + b"\xff" * 512 + data[2012:])
        assert decode(data).shape == (60, 60, 3)
    finally:
        os.dup2(log, 2)
        os.close(log)
        os.close(full)


def test_the_end_of_a_preview_within_a_photograph_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """Cameras put a small JPEG into the header of the large one."""
    whole, preview = (cv2.imencode(".jpg", noise(5, size, size))[1].tobytes() for size in (64, 16))
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    photograph = whole[:2] + segment + whole[2:]
    assert decode(photograph).shape == (64, 64, 3)
    with pytest.raises(Unreadable, match="too early"):
        decode(photograph[: len(segment) + len(whole) // 2])


def test_a_film_behind_a_photograph_does_not_make_it_a_truncated_one() -> None:
    """As telephones write them: any bytes may follow the end of the image."""
    photograph = cv2.imencode(".jpg", noise(5, 64, 64))[1].tobytes()
    film = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes() + b"\xff\xda\x00"
    assert decode(photograph + film).shape == (64, 64, 3)
    with pytest.raises(Unreadable, match="too early"):
        decode(photograph[: len(photograph) // 2])
