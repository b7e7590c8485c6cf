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
from dspkd_export.deploy_module import DeployModule, normalised_rows
from dspkd_export.job import Compiled, ExportJob
from dspkd_export.live_channels import LiveChannelShuffleNet

__all__ = ["MODEL_FILE", "NhwcModule", "compile_litert"]

MODEL_FILE = "model.tflite"
SCRIPT = Path(__file__).with_name("litert_script.py")


class NhwcModule(nn.Module):
    """float32 (1, H, W, 3) RGB in [0, 1], or uint8, -> {"probabilities": float32 (1, K)}, as `module` answers; H = W =
    `size`. Takes `module` over: it is changed.

    If `mirrored` comes out true, it answers for the picture of which all bytes are in reverse order: the last pixel
    comes first, and blue before red.
    """

    def __init__(self, module: DeployModule, size: int) -> None:
        super().__init__()
        # Those of bytes are there for every pixel of a row.
        mean, std = module.mean.flatten()[:3], module.std.flatten()[:3]
        self.mirrored = isinstance(module.network, LiveChannelShuffleNet)
        if isinstance(module.network, LiveChannelShuffleNet):
            _take_std_into(module.network.stem, std)
            _mirror(module.network)
            mean, std = mean.flip(0), torch.ones_like(std)
        self.rows = NormalisedRows(mean, std, size)
        self.deployed = module

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        logits = self.deployed.network(self.rows(image).permute(0, 3, 1, 2))
        return {"probabilities": self.deployed.probabilities(logits)}


class NormalisedRows(nn.Module):
    """`normalised_rows` with a mean and a std of three channels, for pictures of `size`."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, size: int) -> None:
        super().__init__()
        self.divides = bool((std != 1).any())
        self.register_buffer("mean", mean.repeat(size))
        self.register_buffer("std", std.repeat(size))

    def forward(self, image: Tensor) -> Tensor:
        return normalised_rows(image, self.mean, self.std if self.divides else None)


def _take_std_into(stem: nn.Sequential, std: Tensor) -> None:
    """Let the first convolution do the division, which is exact: it pads with zeros, and a zero divided is a zero."""
    conv = stem[0]
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data = (conv.weight.data.double() / std.double().view(1, 3, 1, 1)).to(conv.weight.dtype)


def _mirror(network: LiveChannelShuffleNet) -> None:
    """The same network for pictures that are mirrored in both directions, with their colours in reverse order.

    PyTorch pads above and to the left of what it halves, LiteRT below and to the right, and anything else is a pad of
    its own there. Before the max pool that copies the largest map: 4 % of the time in fp32 and 9 % in int8
    (ShuffleNetV2 at 224 px). Mirrored, the network pads where LiteRT does. Its last step is a mean, which knows no
    directions.
    """
    stem = network.stem
    assert isinstance(stem[0], nn.Conv2d) and isinstance(stem[1], nn.ReLU) and isinstance(stem[2], nn.MaxPool2d)
    stem[0].weight.data = stem[0].weight.data.flip(1)
    for chain in (stem, *network.branches):
        assert isinstance(chain, nn.Sequential)
        for place, layer in enumerate(chain):
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.flip(2, 3).contiguous()
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and layer.stride in (2, (2, 2)):
                assert layer.kernel_size in (3, (3, 3)) and layer.padding in (1, (1, 1))
                layer.padding = 0
                chain[place] = nn.Sequential(PadAfter(), layer)


class PadAfter(nn.Module):
    """(N, C, H, W) with a border of zeros, for a kernel of three and a stride of two: below and to the right, and on
    the other sides where H or W is odd. Zeros are right for the max pool, too: it reads what a ReLU gives.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return nn.functional.pad(x, (width % 2, 1, height % 2, 1))


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
            pixels = required_for_int8(job.calibration).pixels
            np.save(images, to_input(pixels[:, ::-1, ::-1, ::-1] if module.mirrored else pixels, "float32", "NHWC"))
            run_converter(SCRIPT, "quantise", fp32, images, job.dtype, file)
        elif job.precision == "fp16":
            run_converter(SCRIPT, "halve", fp32, file)
        if module.mirrored:
            run_converter(SCRIPT, "mirror", file)
    details = {"converter": made_by}
    if job.precision == "int8":
        activations = "int8, affine, smallest and largest value"
        details["quantisation"] = {"activations": activations, "weights": "int8, symmetric, per channel"}
    return Compiled((MODEL_FILE,), details, loaded={MODEL_FILE: load_model("litert", file)})
