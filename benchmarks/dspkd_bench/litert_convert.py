"""A network as a .tflite file, by LiteRT's converter: a script for a Python that has litert-torch, and need not have
dspkd.

python litert_convert.py convert LIBRARY/NETWORK WEIGHTS CLASSES SIZE OUT
python litert_convert.py quantise FP32 IMAGES OUT

WEIGHTS is a .safetensors file with the state dict. The file takes float32 (1, SIZE, SIZE, 3), normalised, and gives
logits. IMAGES is a .npy file with float32 (N, SIZE, SIZE, 3), which the ranges of int8 are taken from.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def convert(network: str, weights: str, classes: str, size: str, out: str) -> None:
    import litert_torch
    import torch
    from safetensors.torch import load_file

    model = _created(network, int(classes)).eval()
    model.load_state_dict(load_file(weights))
    image = torch.zeros(1, int(size), int(size), 3)
    # The layout in which LiteRT computes; with PyTorch's it would transpose every image first.
    litert_torch.convert(litert_torch.to_channel_last_io(model, args=[0]), (image,)).export(out)


def _created(network: str, classes: int) -> Any:
    library, _, name = network.partition("/")
    if library == "torchvision":
        import torchvision

        return torchvision.models.get_model(name, weights=None, num_classes=classes)
    import timm

    return timm.create_model(name, pretrained=False, num_classes=classes)


def quantise(fp32: str, images: str, out: str) -> None:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    ((signature, names),) = Interpreter(fp32).get_signature_list().items()
    (name,) = names["inputs"]
    work = quantizer.Quantizer(fp32, recipe.static_wi8_ai8())
    ranges = work.calibrate({signature: [{name: image[None]} for image in np.load(images)]})
    Path(out).write_bytes(work.quantize(ranges).quantized_model)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    (convert if what == "convert" else quantise)(*arguments)
