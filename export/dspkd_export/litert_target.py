"""LiteRT, which was TensorFlow Lite: a .tflite file for batch 1, as Android's own runtime and its delegates take it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dspkd.errors import MissingDependencyError
from dspkd.litert_converter import run_converter
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import load_model, to_input
from dspkd_export.calibration import required_for_int8
from dspkd_export.deploy_module import DeployModule
from dspkd_export.job import Compiled, ExportJob
from dspkd_export.live_channels import LiveChannelShuffleNet

__all__ = ["MODEL_FILE", "NhwcModule", "compile_litert"]

MODEL_FILE = "model.tflite"
SCRIPT = Path(__file__).with_name("litert_script.py")


class NhwcModule(nn.Module):
    """float32 (1, H, W, 3) RGB in [0, 1], or uint8, -> {"probabilities": float32 (1, K)}, as `module` answers; H = W =
    `size`. Takes `module` over: it is changed.
    """

    def __init__(self, module: DeployModule, size: int) -> None:
        super().__init__()
        # Those of bytes are there for every pixel of a row.
        mean, std = module.mean.flatten()[:3], module.std.flatten()[:3]
        if isinstance(module.network, LiveChannelShuffleNet):
            _take_std_into(module.network.stem, std)
            std = torch.ones_like(std)
        self.rows = NormalisedRows(mean, std, size)
        self.deployed = module

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits = self.deployed.network(self.rows(image).permute(0, 3, 1, 2))
        return {"probabilities": self.deployed.probabilities(logits)}


class NormalisedRows(nn.Module):
    """(image - `mean`) / `std` in NHWC, computed on whole rows of a picture: XNNPACK needs several times as long where
    the innermost dimension is three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, size: int) -> None:
        super().__init__()
        self.divides = bool((std != 1).any())
        self.register_buffer("mean", mean.repeat(size))
        self.register_buffer("std", std.repeat(size))

    def forward(self, image: Tensor) -> Tensor:
        rows = image.to(self.mean.dtype).flatten(2) - self.mean
        return (rows / self.std if self.divides else rows).reshape(image.shape)


def _take_std_into(stem: nn.Sequential, std: Tensor) -> None:
    """Let the first convolution do the division, which is exact: it pads with zeros, and a zero divided is a zero. The
    max pool reads what a ReLU gives and may pad with zeros, too, which LiteRT hands to XNNPACK, where it keeps a pad
    with the lowest number to itself.
    """
    conv, relu, pool = stem
    assert isinstance(conv, nn.Conv2d) and isinstance(relu, nn.ReLU) and isinstance(pool, nn.MaxPool2d)
    conv.weight.data = (conv.weight.data.double() / std.double().view(1, 3, 1, 1)).to(conv.weight.dtype)
    assert isinstance(pool.padding, int)
    stem[2] = nn.Sequential(nn.ZeroPad2d(pool.padding), nn.MaxPool2d(pool.kernel_size, pool.stride))


def compile_litert(job: ExportJob) -> Compiled:
    """Write model.tflite into the job's folder.

    fp16 halves the weights; LiteRT's CPU computes with them in float32. int8 is calibrated on the job's images, also
    where the student brings trained scales. Raises MissingDependencyError without ai-edge-litert or, in the Python that
    DSPKD_LITERT_PYTHON names, without litert-torch, and VerificationError if the converter fails.
    """
    try:
        with quiet_libraries():
            import ai_edge_litert  # noqa: F401  before a minute is spent on converting
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"LiteRT export needs {error.name}", hint="pip install 'dspkd[litert]'") from error
    file = job.folder / MODEL_FILE
    # In int8 the quantiser's first levels are the bytes; in floats the program turns bytes into numbers by itself.
    program_takes = "float32" if job.precision == "int8" else job.dtype
    image = torch.from_numpy(to_input(np.zeros((1, job.size, job.size, 3), dtype=np.uint8), program_takes, "NHWC"))
    with tempfile.TemporaryDirectory() as temporary:
        program, images = Path(temporary) / "program.pt2", Path(temporary) / "images.npy"
        fp32 = file if job.precision == "fp32" else Path(temporary) / "fp32.tflite"
        with quiet_libraries():
            module = NhwcModule(replace(job, takes_bytes=program_takes == "uint8").module(), job.size).eval()
            torch.export.save(torch.export.export(module, (), {"image": image}, strict=False), program)
        made_by = json.loads(run_converter(SCRIPT, "versions").splitlines()[-1])
        run_converter(SCRIPT, "convert", program, fp32)
        if job.precision == "int8":
            np.save(images, to_input(required_for_int8(job.calibration).pixels, "float32", "NHWC"))
            run_converter(SCRIPT, "quantise", fp32, images, job.dtype, file)
        elif job.precision == "fp16":
            run_converter(SCRIPT, "halve", fp32, file)
    details = {"converter": made_by}
    if job.precision == "int8":
        activations = "int8, affine, smallest and largest value"
        details["quantisation"] = {"activations": activations, "weights": "int8, symmetric, per channel"}
    return Compiled((MODEL_FILE,), details, loaded={MODEL_FILE: load_model("litert", file)})
