"""ONE description of how a picture becomes the network's input; training, evaluation, export, bench and the phone
use it.

The steps, in this order:

1. decode; apply the EXIF orientation; convert to RGB (alpha over white, CMYK and grey converted);
2. cut the largest centred square, and clean it, if `cleaning` asks for that: hairs, then light;
3. resize it to `size` x `size` with Pillow's 8-bit resampler (antialiased, fixed-point weights, so that the bytes are
   the same on every machine);
4. divide by 255, subtract `mean`, divide by `std` per RGB channel.

Steps 1 to 3 give uint8 pixels, `load_pixels`; step 4 is baked into every exported graph. Cleaning comes before the
resize because a hair is thinner than a pixel after it, and sees the whole square whatever the network's size, so that
training pixels (which are larger, for crops) and those that judge are cleaned alike.
`export/preprocessing.md` has all of it exactly enough to be repeated in another language, with golden vectors.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps
from pydantic import ConfigDict, Field

from dspkd.cleaning import Cleaning
from dspkd.errors import DataError
from dspkd.npz_images import picture_of, read_picture
from dspkd.stored_form import StoredForm

__all__ = ["Preprocess", "clean_square", "load_pixels", "load_rgb"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Preprocess(StoredForm):
    """Preprocessing of one model. Mean and std are for RGB in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=16, le=2048)
    crop: Literal["center-square"] = "center-square"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: Literal[True] = True
    color_order: Literal["RGB"] = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    cleaning: Cleaning = Cleaning()

    def unused_keys(self) -> frozenset[str]:
        return frozenset() if self.cleaning.is_on else frozenset({"cleaning"})


def load_rgb(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Decode a picture completely, upright and as RGB. Raises DataError, naming the file, if it cannot.

    `path` may lead into a MedMNIST archive (`dspkd.npz_images`). With `at_least` a JPEG may come at a half, a quarter
    or an eighth of its size, for speed, as long as both sides keep that many pixels.
    """
    if inside := picture_of(path):
        return Image.fromarray(read_picture(*inside)).convert("RGB")
    try:
        with Image.open(path) as opened:
            if at_least is not None:
                opened.draft(None, (at_least, at_least))
            opened.load()
            # exif_transpose copies the picture also where nothing is to be turned.
            turned = opened.getexif().get(ExifTags.Base.Orientation, 1) != 1
            upright = ImageOps.exif_transpose(opened) if turned else opened
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            f"image {path} cannot be decoded: {error}", hint="the file is damaged or no picture: replace or remove it"
        ) from error
    if upright.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which makes nearly every picture white. The high byte is what it takes
        # from 16-bit colour.
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        raise DataError(
            f"image {path} has 32 bits a pixel, and what is white in it is unknown", hint="save it with 8 or 16 bits"
        )
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def resize_square(image: Image.Image, size: int, interpolation: str) -> np.ndarray:
    """Steps 2 and 3. Returns uint8 (size, size, 3)."""
    # Not resize(box=...): there the filter reaches for pixels outside the square.
    square = _centre_square(image)
    return np.asarray(square.resize((size, size), _RESAMPLE[interpolation]), dtype=np.uint8)


def resize_square_quickly(pixels: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """As `resize_square`, of uint8 (H, W, 3) and within a level of it, with PyTorch's resampler, which uses the
    processor's wide registers. For training pixels only: it is not the same on every machine.
    """
    left, top, right, bottom = _centre((pixels.shape[1], pixels.shape[0]))
    square = np.ascontiguousarray(pixels[top:bottom, left:right])
    if len(square) == size:
        return square
    import torch
    from torch.nn import functional

    # A picture of Pillow's cannot be written to, which PyTorch warns of. In a batch of one PyTorch sees that channels
    # lie side by side, and resizes them in that layout.
    writable = square if square.flags.writeable else square.copy()
    batch = torch.from_numpy(writable).unsqueeze(0).permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, (size, size), mode=interpolation, antialias=True)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def clean_square(image: Image.Image, cleaning: Cleaning) -> Image.Image:
    """Step 2: the largest centred square, cleaned. Where there is nothing to do, the picture as it is."""
    if not cleaning.is_on:
        return image
    pixels = np.asarray(_centre_square(image))
    if cleaning.hair_removal:
        from dspkd.data.hair import remove_hair

        pixels = remove_hair(pixels, cleaning.hair_threshold)
    if cleaning.illumination:
        from dspkd.data.illumination import even_light

        pixels = even_light(pixels)
    return Image.fromarray(pixels)


def _centre_square(image: Image.Image) -> Image.Image:
    return image.crop(_centre(image.size)) if image.width != image.height else image


def _centre(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest centred square of a picture of this width and height."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def load_pixels(path: Path, preprocess: Preprocess) -> np.ndarray:
    """A picture file as the uint8 pixels (size, size, 3) that the network sees before normalisation."""
    image = clean_square(load_rgb(path), preprocess.cleaning)
    return resize_square(image, preprocess.size, preprocess.interpolation)
