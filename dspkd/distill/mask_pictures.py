"""What stage 1 hides, as a picture: images, the teacher's HF attention over them, and the mask that follows from it."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from dspkd.distill.hf_attention import hf_attention, hf_mask
from dspkd.models import Architecture, FeatureTaps
from dspkd.student import Student

__all__ = ["mask_strip_png"]

TILE, GAP = 144, 6
HEAT = np.array([255.0, 190.0, 40.0])


@torch.no_grad()
def mask_strip_png(teacher: Student, pixels: np.ndarray, *, threshold: float = 1.0) -> bytes:
    """Three rows of tiles as a PNG: `pixels` uint8 (N, size, size, 3); attention A^HF at stride 4, laid over in yellow;
    the same pictures with the places dark that M^HF (A >= `threshold`, eq. 3) hides from the student.
    """
    from dspkd.data.views import pixels_to_tensor
    from dspkd.train.task import Normalise

    layers = Architecture(teacher.card.architecture).layers(teacher.model)
    with FeatureTaps(teacher.model.eval(), (*layers.levels, layers.final)) as taps:
        teacher.model(Normalise(teacher.card.preprocess)(pixels_to_tensor(pixels)))
        maps = taps.take()
    levels = [maps[layer] for layer in layers.levels]
    fine = hf_attention(levels, (levels[0].shape[2], levels[0].shape[3]))
    coarse = hf_attention(levels, (maps[layers.final].shape[2], maps[layers.final].shape[3]))
    heat = functional.interpolate(fine, size=(TILE, TILE), mode="bilinear", align_corners=False)
    kept = functional.interpolate(hf_mask(coarse, threshold=threshold), size=(TILE, TILE), mode="nearest")
    step, width = TILE + GAP, len(pixels) * (TILE + GAP) - GAP
    strip = np.zeros((3 * step - GAP, width, 4), dtype=np.uint8)
    for column, (picture, attention, mask) in enumerate(
        zip(pixels, heat[:, 0].numpy(), kept[:, 0].numpy(), strict=True)
    ):
        tile = np.asarray(Image.fromarray(picture).resize((TILE, TILE), Image.Resampling.BICUBIC), dtype=np.float64)
        opacity = 0.75 * np.clip(attention / max(attention.max(), 1e-6), 0, 1)[..., None] ** 1.5
        rows = (tile, tile * (1 - opacity) + HEAT * opacity, tile * (0.14 + 0.86 * mask[..., None]))
        for row, one in enumerate(rows):
            place = strip[row * step : row * step + TILE, column * step : column * step + TILE]
            place[..., :3], place[..., 3] = np.clip(one, 0, 255), 255
    buffer = io.BytesIO()
    Image.fromarray(strip).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
