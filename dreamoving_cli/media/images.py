"""Pictures: read them as everyone sees them, resize without stretching, write them whole.

uint8 `h w c`, RGB, everywhere. Not here: video (video.py) and faces (extract/face.py).
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageOps, UnidentifiedImageError

from dreamoving_cli.errors import InputError, OutputError
from dreamoving_cli.media.whole import check_output
from dreamoving_cli.whole import whole_file

MIN_SIDE = 16  # pixels; below this nothing can be recognized


def read_image(path: Path) -> np.ndarray:
    """The picture as it is meant to be seen, uint8 h w c: upright, on white, in sRGB, 8 bit."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file", "Check the path.")
    try:
        with Image.open(path) as image:
            image.load()
            refuse_tiny(path, image.height, image.width)
            picture = to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        limit = f"{2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
        raise InputError(f"{path} has more than {limit}", "Give a smaller copy of it.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{path} is not a picture that can be read ({one_line(error)})", "Give a JPEG, PNG or WebP file."
        ) from error
    return np.asarray(picture).copy()


def refuse_tiny(path: Path, height: int, width: int) -> None:
    """Pictures of a few pixels show nothing."""
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{path} is {width}x{height} pixels", f"Give a picture of at least {MIN_SIDE} pixels a side."
        )


def one_line(error: BaseException) -> str:
    """The first line of an error's text, short enough for a sentence."""
    if isinstance(error, UnidentifiedImageError):
        return "its format is unknown"
    text = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
    return f"{text[0].lower()}{text[1:100]}".rstrip(".")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as 8-bit sRGB, transparency over white."""
    image = to_8_bit(image)
    profile = image.info.get("icc_profile")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode not in ("RGB", "CMYK", "LAB", "L"):
        image = image.convert("RGB")
    return from_profile(image, profile).convert("RGB")


def to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit and float gray pictures as 8-bit gray; Pillow alone would clip them to white."""
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image).astype(np.float64)
    full = 65535.0
    if image.mode == "F":
        full = 1.0 if values.max() <= 1 else 255.0
    return Image.fromarray(np.clip(np.round(values * 255 / full), 0, 255).astype(np.uint8))


def from_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colors moved from the embedded profile (wide-gamut phones, CMYK presses) to sRGB."""
    if not profile:
        return image
    try:
        source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return (
            ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            or image
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image  # a broken profile, or one for another mode: the plain conversion is the best guess


def check_picture(path: Path, overwrite: bool = False) -> None:
    """Refuse a picture's name that cannot be written, as `check_output` does, or has no format."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise OutputError(
            f"'{path.suffix}' is not a picture format, in {path}", "End the name in .png or .jpg."
        )
    check_output(path, overwrite)


def write_image(path: Path, image: np.ndarray, *, overwrite: bool = False) -> Path:
    """Write uint8 h w c; the format follows the extension. The file appears whole or not at all."""
    path = Path(path)
    check_picture(path, overwrite)
    with whole_file(path) as part:
        Image.fromarray(image).save(part)
    return path


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """h w c to height width c: averaged when it shrinks, Lanczos when it grows. Stretches if asked to."""
    import cv2  # takes longer to import than a command has to show its help

    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=method))


def crop_to_aspect(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The largest centered part of `h w c` with the aspect of height:width, as a view."""
    h, w = image.shape[:2]
    new_h = min(h, max(1, round(w * height / width)))
    new_w = min(w, max(1, round(h * width / height)))
    top, left = (h - new_h) // 2, (w - new_w) // 2
    return image[top : top + new_h, left : left + new_w]


def fit_square(image: np.ndarray, side: int, fill: int = 255) -> np.ndarray:
    """h w c padded to a square with `fill`, centered, then resized: side side c."""
    h, w, c = image.shape
    length = max(h, w)
    square = np.full((length, length, c), fill, np.uint8)
    top, left = (length - h) // 2, (length - w) // 2
    square[top : top + h, left : left + w] = image
    return resize(square, side, side)


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` numbers below `count`, evenly spread, the first and the last among them."""
    return sorted(set(np.linspace(0, count - 1, min(wanted, count)).round().astype(int).tolist()))


def contact_sheet(
    frames: Sequence[np.ndarray], columns: int, labels: Sequence[str] | None = None
) -> np.ndarray:
    """Pictures (uint8 h w c, the first one's size rules) side by side in rows, each with its label."""
    if not frames:
        raise ValueError("a contact sheet needs at least one picture")
    height, width = frames[0].shape[:2]
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = resize(
            crop_to_aspect(frame, height, width), height, width
        )
    return draw_labels(sheet, labels, columns, (height, width)) if labels else sheet


def draw_labels(sheet: np.ndarray, labels: Sequence[str], columns: int, cell: tuple[int, int]) -> np.ndarray:
    """Each cell's label in its top left corner, black-edged white so that it reads on any picture."""
    canvas = Image.fromarray(sheet)
    pen = ImageDraw.Draw(canvas)
    for i, label in enumerate(labels):
        corner = (i % columns * cell[1] + 4, i // columns * cell[0] + 2)
        pen.text(corner, label, fill="white", stroke_width=1, stroke_fill="black")
    return np.asarray(canvas)
