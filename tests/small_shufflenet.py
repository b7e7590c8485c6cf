"""A ShuffleNetV2 that every compiler takes a fraction of the usual time for, and the one whose .tflite files are
recorded in tests/export/data (`tests/export/record_litert.py`).
"""

from pathlib import Path

import numpy as np
import torch
from lively import settle_batch_norms
from torchvision.models.shufflenetv2 import ShuffleNetV2

from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard
from dspkd_export.calibration import Calibration
from dspkd_export.job import ExportJob

SIZE = 32
RECORDED = Path(__file__).parent / "export" / "data"


def pictures(count=16):
    """uint8 (count, SIZE, SIZE, 3): one colour each, and noise. Whole numbers from the generator, alike everywhere."""
    rng = np.random.Generator(np.random.PCG64(0))
    colours = rng.integers(40, 216, (count, 1, 1, 3))
    return np.clip(colours + rng.integers(-40, 40, (count, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


CALIBRATED = Calibration(pictures(), [str(i) for i in range(16)])


def small_shufflenet(repeats, widths, images, path):
    """Three classes, and batch norms that fit `images`, uint8 (N, SIZE, SIZE, 3)."""
    torch.manual_seed(0)
    preprocess = Preprocess(size=SIZE)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    normalised = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    model = settle_batch_norms(ShuffleNetV2(repeats, widths, num_classes=3), normalised)
    card = StudentCard(
        role="student", architecture="shufflenet_v2_x0_5", classes=("a", "b", "c"), preprocess=preprocess
    )
    return Student(model, card, path)


def recorded_student():
    """Eight units in one stage, so that its last reader concatenates more tensors than XNNPACK takes."""
    return small_shufflenet([2, 8, 2], [8, 16, 24, 32, 16], pictures(), Path("recorded"))


def recording_job(student, folder, precision, calibration=None, **more):
    return ExportJob(student, folder, precision, True, calibration, **more)
