"""PNG and JPEG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from medfm.errors import DataError
from medfm.io.load import load_image, peek

GREY = np.array([[0, 10, 20], [30, 40, 255]], np.uint8)
COLOUR = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 9, 9], [1, 2, 3], [7, 8, 9]]], np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = Pictures.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)  # type: ignore[arg-type]
    return path


def test_load__grey_8_bit(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", GREY))
    assert image.shape == (3, 2, 1)
    np.testing.assert_array_equal(image.array[:, :, 0].T, GREY)
    assert (image.intensity_units, image.bits_stored, image.spaced, image.oriented) == ("display", 8, False, False)
    assert image.windows == ()
    assert peek(tmp_path / "a.png").shape == (3, 2, 1)


def test_load__grey_16_bit(tmp_path: Path) -> None:
    deep = np.array([[0, 300], [40000, 65535]], np.uint16)
    image = load_image(save(tmp_path / "a.png", deep))
    np.testing.assert_array_equal(image.array[:, :, 0].T, deep)
    assert (image.array.dtype, image.bits_stored, image.intensity_units) == (np.dtype(np.uint16), 16, "arbitrary")


def test_load__colour(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", COLOUR))
    assert (image.shape, image.photometric, image.last_axis) == ((3, 2, 1, 3), "RGB", "colour")
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), COLOUR)
    assert peek(tmp_path / "a.png").shape == (3, 2, 1, 3)


def test_load__palette(tmp_path: Path) -> None:
    picture = Pictures.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), mode="P")
    picture.putpalette(COLOUR.tobytes())
    picture.save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.photometric == "RGB"
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), COLOUR)
    Pictures.fromarray(GREY).convert("P").save(tmp_path / "b.png")
    grey = load_image(tmp_path / "b.png")
    np.testing.assert_array_equal(grey.array[:, :, 0].T, GREY)


def test_load__alpha_is_dropped_with_a_note(tmp_path: Path) -> None:
    alpha = np.concatenate([COLOUR, np.full((2, 3, 1), 7, np.uint8)], axis=2)
    image = load_image(save(tmp_path / "a.png", alpha))
    np.testing.assert_array_equal(image.array[:, :, 0].swapaxes(0, 1), COLOUR)
    assert image.notes == ("transparency was dropped",)


def test_load__bilevel(tmp_path: Path) -> None:
    image = load_image(save(tmp_path / "a.png", GREY, mode="1"))
    assert set(np.unique(image.array)) <= {0, 255}


def test_load__exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :8] = 255
    exif = Pictures.Exif()
    exif[274] = 6  # turn 90 degrees clockwise to see it upright
    image = load_image(save(tmp_path / "a.jpg", pixels, exif=exif, quality=100))
    assert image.shape == (16, 32, 1)
    upright = image.array[:, :, 0].T
    assert upright[:8, 8:].mean() > 250  # the marker has moved to the top right
    assert any("EXIF" in note for note in image.notes)
    assert peek(tmp_path / "a.jpg").shape == (16, 32, 1)


def test_load__real_film(data_dir: Path) -> None:
    path = sorted((data_dir / "cxr_kermany" / "images").glob("*.jpg"))[0]
    image = load_image(path, modality="CR")
    np.testing.assert_array_equal(image.array[:, :, 0].T, np.asarray(Pictures.open(path)))
    assert image.modality == "CR"


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_load__truncated_or_damaged(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    path = save(tmp_path / name, noise)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"truncated|damaged"):
        load_image(path)
    path.write_bytes(content[:20])
    with pytest.raises(DataError, match=r"not a PNG|damaged"):
        load_image(path)


def test_load__no_picture_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text" * 100)
    with pytest.raises(DataError, match="not a PNG or JPEG"):
        load_image(tmp_path / "a.png")


def test_load__a_claim_of_too_many_pixels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="pixels"):
        load_image(path)


def test_load__animation_is_refused(tmp_path: Path) -> None:
    frames = [Pictures.fromarray(GREY), Pictures.fromarray(255 - GREY)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="several frames"):
        load_image(tmp_path / "a.png")
