"""The network as it is deployed: normalisation and softmax inside, batch norms folded, no channel shuffles."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.shufflenetv2 import ShuffleNetV2

from dspkd.preprocess import Preprocess
from dspkd.student import Student
from dspkd_export.graph_rewrite import rewrite_graph
from dspkd_export.live_channels import LiveChannelShuffleNet, Widths

__all__ = ["DeployModule", "deploy_module", "fold_batch_norms", "normalised_rows"]


class DeployModule(nn.Module):
    """float32 (N, 3, H, W) RGB in [0, 1], or uint8 (N, H, W, 3) RGB as a camera or a decoder has it, -> float32 (N, K)
    probabilities: softmax of the logits over `temperature`. Bytes have to have the side of `preprocess`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocess: Preprocess, *, takes_bytes: bool = False, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.takes_bytes, self.temperature = network, takes_bytes, temperature
        self.gives_logits = False
        """For training and for half precision: ends before the temperature and the softmax."""
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            levels = torch.tensor(values)
            # Bytes are not divided by 255 first: that would be one more pass over the picture.
            self.register_buffer(
                name, (255.0 * levels).repeat(preprocess.size) if takes_bytes else levels.view(1, 3, 1, 1)
            )

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(self._normalised(image))
        return logits if self.gives_logits else self.probabilities(logits)

    def _normalised(self, image: Tensor) -> Tensor:
        if not self.takes_bytes:
            return (image - self.mean) / self.std
        # Bytes become numbers before they change their order: ExecuTorch's own kernels take a millisecond to turn a
        # picture of 224 px.
        return normalised_rows(image, self.mean, self.std).permute(0, 3, 1, 2)

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits if self.temperature == 1.0 else logits / self.temperature, dim=1)


def normalised_rows(image: Tensor, mean: Tensor, std: Tensor | None) -> Tensor:
    """(image - `mean`) / `std` of numbers (N, H, W, 3), computed on whole rows: runtimes need several times as long
    where the innermost dimension is three channels. `mean` and `std`, (3 W,), are repeated for every pixel of a row;
    without `std` nothing is divided.
    """
    _, height, width, channels = image.shape
    rows = image.to(mean.dtype).reshape(-1, height, width * channels) - mean
    return (rows if std is None else rows / std).reshape(-1, height, width, channels)


def deploy_module(
    student: Student,
    *,
    rewrite: bool = True,
    takes_bytes: bool = False,
    temperature: float = 1.0,
    widths: Widths | None = None,
) -> DeployModule:
    """A copy of the student ready for a compiler; the student itself is left as it is.

    Everything done here is exact in eval mode, up to rounding. `rewrite=False` leaves the network as its library has
    it, for comparison. `widths` is for a rewritten ShuffleNetV2 alone.
    """
    network, preprocess = copy.deepcopy(student.model).eval(), student.card.preprocess
    if rewrite and isinstance(network, ShuffleNetV2):
        fold_batch_norms(network)
        network = LiveChannelShuffleNet(network, widths)
    elif rewrite:
        example = next(network.parameters()).new_zeros(2, 3, preprocess.size, preprocess.size)
        network = rewrite_graph(network, example, ({0: torch.export.Dim("batch", min=1, max=4096)},))
    return DeployModule(network, preprocess, takes_bytes=takes_bytes, temperature=temperature).eval()


def fold_batch_norms(model: nn.Module) -> None:
    """Fold every BatchNorm2d that directly follows a convolution in an nn.Sequential into it, in place.

    Only there is it certain, without tracing, that nothing else reads the convolution's output.
    """
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        names = list(module._modules)
        for first, second in pairwise(names):
            conv, norm = module._modules[first], module._modules[second]
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                module._modules[first] = fuse_conv_bn_eval(conv, norm)
                module._modules[second] = nn.Identity()
