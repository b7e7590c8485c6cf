"""Writes resize.json beside this file: what Pillow makes of pictures that any language can compute.

    python tests/golden/make_resize.py

The pictures and the fields are described in export/preprocessing.md. Run it only if the specification changes: an app
tests itself against a copy of the file.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dspkd.preprocess import resize_square

TARGET = Path(__file__).with_name("resize.json")

# (width, height, size, interpolation, seed); the small ones have seeds that begin with noise
CASES = [
    # what dermatoscopes and phones give, to the sizes that students are trained at
    (600, 450, 96, "bilinear", 1),
    (600, 450, 224, "bilinear", 2),
    (1024, 1024, 224, "bilinear", 3),
    (1024, 768, 112, "bilinear", 4),
    (450, 600, 224, "bicubic", 5),
    (640, 480, 224, "bicubic", 6),
    # an odd pixel is left over
    (101, 64, 48, "bilinear", 7),
    (64, 101, 48, "bilinear", 8),
    (100, 63, 48, "bicubic", 9),
    # enlarged, by whole numbers and by others
    (40, 30, 224, "bilinear", 14),
    (40, 30, 224, "bicubic", 17),
    (16, 16, 64, "bilinear", 20),
    (17, 17, 61, "bicubic", 31),
    # hardly changed, and not changed
    (97, 97, 96, "bilinear", 32),
    (95, 95, 96, "bicubic", 33),
    (96, 96, 96, "bilinear", 34),
    (130, 96, 96, "bicubic", 35),
    # halved: weights that are exact in binary
    (64, 64, 32, "bilinear", 36),
    (64, 64, 32, "bicubic", 37),
    # a single pixel, before or after
    (1, 1, 16, "bilinear", 45),
    (1, 50, 16, "bicubic", 51),
    (2, 3, 16, "bicubic", 52),
    (50, 50, 1, "bilinear", 53),
    (51, 70, 1, "bicubic", 54),
    # from far away
    (2000, 1500, 16, "bilinear", 55),
    (700, 1400, 17, "bicubic", 56),
]


def mix(n: np.ndarray, seed: int) -> np.ndarray:
    """uint32 -> uint32, scrambled."""
    v = n.astype(np.uint32) * np.uint32(2654435761) + np.uint32(seed * 40503 % 2**32)
    v ^= v >> np.uint32(15)
    v *= np.uint32(1103515245)
    return v ^ (v >> np.uint32(13))


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """uint8 (height, width, 3): blocks of 16 pixels that are black, white, noise or a ramp."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    kind = mix((y >> 4) * 4096 + (x >> 4), seed) >> np.uint32(30)
    noise = mix((y * width + x) * 3 + c, seed) >> np.uint32(24)
    ramp = (5 * x + 3 * y + 85 * c) % 256
    return np.choose(kind, [np.zeros_like(ramp), np.full_like(ramp, 255), noise, ramp]).astype(np.uint8)


def sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def vectors() -> list[dict]:
    made = []
    for width, height, size, interpolation, seed in CASES:
        source = picture(width, height, seed)
        result = resize_square(Image.fromarray(source), size, interpolation)
        made.append(
            {
                "width": width,
                "height": height,
                "seed": seed,
                "source_sha256": sha256(source),
                "size": size,
                "interpolation": interpolation,
                "sha256": sha256(result),
                "first": result.ravel()[:24].tolist(),
            }
        )
    return made


def as_text(made: list[dict]) -> str:
    """One vector a line."""
    lines = ",\n    ".join(json.dumps(vector) for vector in made)
    return f'{{\n  "specification": "export/preprocessing.md",\n  "vectors": [\n    {lines}\n  ]\n}}\n'


if __name__ == "__main__":
    TARGET.write_text(as_text(vectors()), encoding="utf-8")
