import csv

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """60 pictures of three classes that differ in colour, two pictures a lesion, in the ISIC2019 layout."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    colours = {"RED": (200, 60, 60), "GREEN": (60, 200, 60), "BLUE": (60, 60, 200)}
    truth, metadata = [], []
    for k, (name, colour) in enumerate(colours.items()):
        for i in range(20):
            image = f"{name}_{i:02d}"
            noise = rng.integers(-40, 40, (48, 56, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{image}.png")
            truth.append([image, *(1.0 if j == k else 0.0 for j in range(3)), 0.0])
            metadata.append([image, f"{name}-lesion-{i // 2}"])
    for file, header, rows in (
        ("GroundTruth.csv", ["image", *colours, "UNK"], truth),
        ("metadata.csv", ["image", "lesion_id"], metadata),
    ):
        with (root / file).open("w", newline="") as f:
            csv.writer(f).writerows([header, *rows])
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DSPKD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
