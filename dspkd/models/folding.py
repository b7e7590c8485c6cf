"""Batch norms folded into the convolutions before them: a quicker network for a teacher that only answers."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["with_folded_norms"]


def with_folded_norms(model: nn.Module, *, tapped: Collection[str] = ()) -> nn.Module:
    """A copy of `model`, in eval mode, in which every batch norm that alone reads a convolution is part of it.

    The norm's place is kept (by its activation, where it has one), so layers go by the same names and give what they
    gave, but for those that end between a convolution and its norm. Where one of them is among `tapped`, that norm
    stays. Answers agree with the model's to rounding. A model that torch.fx cannot trace is copied as it is.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    modules = dict(folded.named_modules())
    for convolution, norm in _pairs(folded):
        if any(_within(convolution, layer) and not _within(norm, layer) for layer in tapped):
            continue
        _fold(modules[convolution], modules[norm])
        parent, _, name = norm.rpartition(".")
        # Copied: a module in two places goes by one of its names only, and the other could not be tapped.
        setattr(modules[parent] if parent else folded, name, copy.copy(getattr(modules[norm], "act", nn.Identity())))
    return folded


def _within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that alone read them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may raise anything
        return []
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not _is_norm(modules[str(node.target)]) or len(node.args) != 1:
            continue
        before = node.args[0]
        if not isinstance(before, torch.fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = str(before.target), str(node.target)
        if calls[norm] == calls[convolution] == 1 and _is_convolution(modules[convolution]):
            found.append((convolution, norm))
    return found


class _Tracer(torch.fx.Tracer):
    """timm's norms with an activation inside and its convolutions are one step, like torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_norm(m) or _is_convolution(m) or super().is_leaf_module(m, module_qualified_name)


def _is_convolution(module: nn.Module) -> bool:
    """Not those that make something of their weights first."""
    from timm.layers import Conv2dSame

    return type(module) in (nn.Conv2d, Conv2dSame)


def _is_norm(module: nn.Module) -> bool:
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    if type(module) is nn.BatchNorm2d:
        return True
    # timm's BatchNormAct2d is norm, then dropout, then activation.
    return hasattr(module, "act") and isinstance(getattr(module, "drop", nn.Identity()), nn.Identity)


@torch.no_grad()
def _fold(convolution: Any, norm: Any) -> None:
    """In float64, as a small variance would cost digits."""
    numbers = [
        None if value is None else value.double()
        for value in (
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias
        )
    ]  # fmt: skip
    weight, bias, mean, variance, scale, shift = numbers
    made, offset = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)  # type: ignore[arg-type]
    convolution.weight = nn.Parameter(made.to(convolution.weight.dtype), requires_grad=False)
    convolution.bias = nn.Parameter(offset.to(convolution.weight.dtype), requires_grad=False)
