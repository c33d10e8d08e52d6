"""Pictures as they are meant to be seen: upright, on white, 8-bit sRGB; unreadable ones refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from dreamoving_cli.errors import InputError, OutputError
from dreamoving_cli.media.images import (
    contact_sheet,
    crop_to_aspect,
    fit_square,
    read_image,
    resize,
    write_image,
)

COLOR = (200, 120, 40)


@pytest.fixture
def picture() -> Image.Image:
    """32x48, left half in COLOR, right half black: which way is up can be seen."""
    image = Image.new("RGB", (48, 32), COLOR)
    image.paste((0, 0, 0), (24, 0, 48, 32))
    return image


def test_rgb_is_exact(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, picture: Image.Image, orientation: int) -> None:
    stored = {  # how a camera that was held this way stores the picture
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = picture.transpose(stored[orientation]) if orientation > 1 else picture
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((90, 90, 90, 255), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (24, 0, 32, 32))
    image.convert(mode).save(tmp_path / "a.png")
    seen = read_image(tmp_path / "a.png")
    assert seen[5, 5].tolist() == [90, 90, 90]
    assert seen[5, 20].tolist() == [255, 255, 255]
    assert np.abs(seen[5, 28].astype(int) - 127).max() <= 1 or mode == "P"


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_gray(tmp_path: Path, name: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    seen = read_image(tmp_path / name)
    assert seen.shape == (32, 64, 3)
    np.testing.assert_allclose(seen[0, :, 0], np.linspace(0, 255, 64), atol=1)


def test_16_bit_color(tmp_path: Path) -> None:
    import cv2

    deep = np.zeros((32, 32, 3), np.uint16)
    deep[:] = (40 * 257, 120 * 257, 200 * 257)  # blue first
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[4, 4], COLOR, atol=1)


def test_float_gray(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[3, 3].tolist() == [128, 128, 128]


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk(tmp_path: Path, picture: Image.Image, name: str) -> None:
    picture.convert("CMYK").save(tmp_path / name)
    np.testing.assert_allclose(read_image(tmp_path / name)[16, 8], COLOR, atol=4)


@pytest.mark.parametrize("mode", ["L", "1", "YCbCr", "LAB", "HSV"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    suffix = {"YCbCr": "jpg", "LAB": "tif", "HSV": "tif"}.get(mode, "png")
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    if mode == "LAB":
        image = Image.merge("LAB", [Image.new("L", (32, 32), v) for v in (255, 128, 128)])
    elif mode != "HSV":
        image = image.convert(mode)
    image.save(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}")[4, 4].min() >= 250


def test_color_profiles(tmp_path: Path) -> None:
    linear: Any = ImageCms.createProfile("XYZ")  # not a display's: must not break reading
    Image.new("RGB", (32, 32), COLOR).save(
        tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(linear).tobytes()
    )
    assert read_image(tmp_path / "a.png").shape == (32, 32, 3)
    Image.new("RGB", (32, 32), COLOR).save(tmp_path / "b.png", icc_profile=b"nonsense")
    assert read_image(tmp_path / "b.png")[0, 0].tolist() == list(COLOR)
    plain: Any = ImageCms.createProfile("sRGB")
    Image.new("RGB", (32, 32), COLOR).save(
        tmp_path / "c.png", icc_profile=ImageCms.ImageCmsProfile(plain).tobytes()
    )
    np.testing.assert_allclose(read_image(tmp_path / "c.png")[0, 0], COLOR, atol=1)


def test_bad_pictures_are_refused(tmp_path: Path, picture: Image.Image) -> None:
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    Image.new("RGB", (2, 1)).save(tmp_path / "two.png")
    picture.resize((480, 320)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    for name in ("missing.png", "text.png", "empty.png", "two.png", "cut.png", "."):
        with pytest.raises(InputError, match=name.replace(".", r"\.") if name != "." else "file"):
            read_image(tmp_path / name)


def test_a_huge_picture_is_refused(
    tmp_path: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow reads up to twice as many
    with pytest.raises(InputError, match=r"a\.png has more than .* million pixels\. Give a smaller copy"):
        read_image(tmp_path / "a.png")


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    image = np.full((20, 30, 3), 7, np.uint8)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), image)
    with pytest.raises(OutputError, match="exists"):
        write_image(tmp_path / "a.png", image)
    with pytest.raises(OutputError, match="format"):
        write_image(tmp_path / "a.xyz", image)
    with pytest.raises(OutputError):
        write_image(tmp_path / "missing" / "a.png", image)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@given(st.integers(16, 200), st.integers(16, 200), st.integers(16, 200), st.integers(16, 200))
def test_crop_keeps_the_aspect_and_the_center(h: int, w: int, height: int, width: int) -> None:
    rows = np.arange(h)[:, None, None] + np.zeros((1, w, 3))
    part = crop_to_aspect(rows, height, width)
    assert part.shape[0] == h or part.shape[1] == w
    assert abs(part.shape[0] * width - part.shape[1] * height) <= max(height, width)
    assert abs((part[0, 0, 0] + part[-1, 0, 0]) - (h - 1)) <= 1


def test_resize_averages_and_fit_square_pads() -> None:
    checks = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    small = resize(checks.astype(np.uint8), 16, 16)
    assert np.abs(small.astype(int) - 127.5).max() <= 1
    square = fit_square(np.zeros((20, 40, 3), np.uint8), 40)
    assert square.shape == (40, 40, 3)
    assert square[0, 0, 0] == 255
    assert square[20, 20, 0] == 0


def test_contact_sheet() -> None:
    frames = [np.full((24, 32, 3), 40 * k, np.uint8) for k in range(5)]
    sheet = contact_sheet(frames, 3)
    assert sheet.shape == (48, 96, 3)
    assert sheet[30, 40, 0] == 160
    assert sheet[30, 90, 0] == 255
    labelled = contact_sheet(frames, 3, [str(k) for k in range(5)])
    assert (labelled != sheet).any()
