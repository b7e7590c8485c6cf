"""Networks by name: any timm or torchvision classifier, each with the names of the layers that give its feature maps.

timm has no ShuffleNetV2, so the students come from torchvision; the teachers come from timm; ShuffleNetV1, which
neither has, is dspkd's own. A name that both know (`convnext_base`, say) is timm's; write `timm/NAME` or
`torchvision/NAME` to choose.
"""

from __future__ import annotations

import difflib
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dspkd.errors import ModelError
from dspkd.models.shufflenet_v1 import shufflenet_v1_g3, wide_shufflenet
from dspkd.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

__all__ = ["Architecture", "check_takes", "create_model", "pretrained_preprocess"]


@dataclass(frozen=True, slots=True)
class LayerNames:
    """Where the maps of one family of networks are read: four levels (strides 4, 8, 16, 32) and the last map
    before pooling.
    """

    levels: tuple[str, str, str, str]
    final: str


_OWN = {"shufflenet_v1_g3": shufflenet_v1_g3, "wide_shufflenet": wide_shufflenet}
_SHUFFLENET_V1 = LayerNames(
    ("features.init_block", "features.stage1", "features.stage2", "features.stage3"), "features.stage3"
)

# Where distillation attaches. A family is recognised by how its name starts; the longest match wins. Families that
# are not listed are found by `discover_layers`.
_KNOWN_LAYERS = {
    "dspkd/shufflenet_v1_g3": _SHUFFLENET_V1,
    "dspkd/wide_shufflenet": _SHUFFLENET_V1,
    "torchvision/shufflenet_v2": LayerNames(("maxpool", "stage2", "stage3", "stage4"), "conv5"),
    "torchvision/mobilenet_v2": LayerNames(("features.3", "features.6", "features.13", "features.17"), "features.18"),
    "timm/res2net": LayerNames(("layer1", "layer2", "layer3", "layer4"), "layer4"),
    "timm/resnet": LayerNames(("layer1", "layer2", "layer3", "layer4"), "layer4"),
    "timm/convnext": LayerNames(("stages.0", "stages.1", "stages.2", "stages.3"), "stages.3"),
    "timm/efficientnet": LayerNames(("blocks.1", "blocks.2", "blocks.4", "blocks.6"), "bn2"),
    "timm/tf_efficientnet_b": LayerNames(("blocks.1", "blocks.2", "blocks.4", "blocks.6"), "bn2"),
    "timm/tf_efficientnet_lite": LayerNames(("blocks.1", "blocks.2", "blocks.4", "blocks.6"), "bn2"),
    "timm/mobilenetv2": LayerNames(("blocks.1", "blocks.2", "blocks.4", "blocks.6"), "bn2"),
}


class Architecture:
    """One network by name, before it is built.

    `name` is qualified (`torchvision/shufflenet_v2_x1_0`); `short_name` is what users type.
    """

    def __init__(self, name: str) -> None:
        self.library, self.short_name = _resolve(name)

    @property
    def name(self) -> str:
        return f"{self.library}/{self.short_name}"

    def build(self, num_classes: int, *, pretrained: bool = False) -> nn.Module:
        """The network in training mode with `num_classes` outputs (logits). Initialised from torch's global
        generator.
        """
        try:
            if self.library == "dspkd":
                return self._build_own(num_classes, pretrained)
            if self.library == "timm":
                import timm

                return timm.create_model(self.short_name, num_classes=num_classes, pretrained=pretrained)
            return self._build_torchvision(num_classes, pretrained)
        except (OSError, RuntimeError, ImportError) as error:
            if not pretrained:
                raise
            raise ModelError(
                f"pretrained weights of {self.short_name} cannot be downloaded here: {error}",
                hint="give the weights as a file with --weights PATH, or train from scratch",
            ) from error

    def _build_own(self, num_classes: int, pretrained: bool) -> nn.Module:
        if pretrained:
            raise ModelError(
                f"there are no pretrained weights of {self.short_name} to download",
                hint="give a file with --weights PATH (shufflenet_v1_g3 takes those of pytorchcv's shufflenet_g3_w1)",
            )
        return _OWN[self.short_name](num_classes)

    def _build_torchvision(self, num_classes: int, pretrained: bool) -> nn.Module:
        import torchvision

        # These two answer with auxiliary logits while they train, which no loss here knows.
        extra = {"aux_logits": False} if self.short_name in ("googlenet", "inception_v3") else {}
        if not pretrained:
            with warnings.catch_warnings():
                # Inception and GoogLeNet announce a future change of their initialisation; nothing to act on.
                warnings.simplefilter("ignore", FutureWarning)
                return torchvision.models.get_model(self.short_name, weights=None, num_classes=num_classes, **extra)
        from dspkd.models.weights import fit_state_dict

        source = torchvision.models.get_model(self.short_name, weights="DEFAULT")
        model = torchvision.models.get_model(self.short_name, weights=None, num_classes=num_classes)
        fit_state_dict(model, source.state_dict(), origin="torchvision's pretrained weights")
        return model

    def layers(self, model: nn.Module) -> LayerNames:
        """Names of the layers to tap. Raises ModelError for a network without four levels of feature maps."""
        matches = [prefix for prefix in _KNOWN_LAYERS if self.name.startswith(prefix)]
        if matches:
            known = _KNOWN_LAYERS[max(matches, key=len)]
            names = dict(model.named_modules())
            if all(layer in names for layer in (*known.levels, known.final)):
                return known
        return discover_layers(model, self.short_name)


def create_model(name: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """`Architecture(name).build(...)`. Raises ModelError for an unknown name."""
    return Architecture(name).build(num_classes, pretrained=pretrained)


@torch.no_grad()
def check_takes(model: nn.Module, name: str, *, size: int, num_classes: int) -> None:
    """Raises ModelError if `model` does not give (1, num_classes) logits for an image of this size."""
    training = model.training
    model.eval()
    try:
        logits = model(torch.zeros(1, 3, size, size))
    except Exception as error:  # every library has its own way of refusing a size
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{name} does not take {size}x{size} images: {lines[0]}", hint="choose another --size"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor) or logits.shape != (1, num_classes):
        raise ModelError(f"{name} does not give one row of {num_classes} logits", hint="choose a plain classifier")


def _resolve(name: str) -> tuple[str, str]:
    import timm
    import torchvision

    torchvision_names = torchvision.models.list_models(module=torchvision.models)
    library, _, short = name.rpartition("/")
    if library in ("", "timm") and timm.is_model(short):
        return "timm", short
    if library in ("", "torchvision") and short in torchvision_names:
        return "torchvision", short
    if library in ("", "dspkd") and short in _OWN:
        return "dspkd", short
    known = set(torchvision_names) | set(timm.list_models()) | set(_OWN)
    close = difflib.get_close_matches(short, sorted(known), n=3)
    raise ModelError(
        f"unknown model {name!r}",
        hint=f"did you mean {', '.join(close)}?" if close else "use a torchvision or timm model name",
    )


def pretrained_preprocess(name: str, size: int) -> Preprocess:
    """The mean and std that the published weights of `name` were trained with, at `size` pixels.

    Always bilinear, also where the weights were trained with bicubic: teacher and student then read the same pixels,
    and the phone needs one resize kernel. Fine-tuning absorbs the difference.
    """
    architecture = Architecture(name)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if architecture.library == "timm":
        import timm

        config = timm.get_pretrained_cfg(architecture.short_name)
        if config is not None:
            mean, std = tuple(config.mean), tuple(config.std)
    return Preprocess(size=size, mean=mean, std=std)


@torch.no_grad()
def discover_layers(model: nn.Module, name: str, *, size: int = 128) -> LayerNames:
    """Find the layers of a network that is not in the table by looking at one forward pass of a blank image.

    A level is the outermost module that gives a map of its stride, the last one if there are several; deeper modules
    may already belong to the next stage's expansion. The final map is the last one larger than 1x1.
    """
    order: list[tuple[str, int]] = []

    def watch(layer: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
                order.append((layer, size // output.shape[2]))

        return hook

    handles = [module.register_forward_hook(watch(layer)) for layer, module in model.named_modules() if layer]
    training = model.training
    # Only batch norm's running statistics could change here, and in eval mode they do not.
    model.eval()
    try:
        model(torch.zeros(1, 3, size, size, device=next(model.parameters()).device))
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{name} does not take {size}x{size} images, so its layers cannot be tapped: {error}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)

    def outermost_last(layers: list[str]) -> str:
        depth = min(layer.count(".") for layer in layers)
        return [layer for layer in layers if layer.count(".") == depth][-1]

    at_stride = {stride: [layer for layer, s in order if s == stride] for stride in (4, 8, 16, 32)}
    missing = [stride for stride, layers in at_stride.items() if not layers]
    if missing:
        raise ModelError(
            f"{name} has no feature map at stride {missing[0]}, which distillation of features needs",
            hint="choose a convolutional network, or a recipe without the feature stage",
        )
    levels = [outermost_last(layers) for layers in at_stride.values()]
    return LayerNames((levels[0], levels[1], levels[2], levels[3]), final=order[-1][0])
