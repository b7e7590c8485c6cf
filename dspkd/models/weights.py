"""Weights from files: safetensors or a plain state dict, never an unrestricted pickle."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dspkd.errors import ModelError

__all__ = ["LoadReport", "fit_state_dict", "load_weights", "read_state_dict"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What happened to a file of weights: tensors loaded, and those of the head that were left at their initial
    values.
    """

    loaded: int
    replaced_head: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.loaded} tensors loaded"
        if self.replaced_head:
            text += f"; {', '.join(self.replaced_head)} had another number of classes and start afresh"
        return text


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from a `torch.save` file of tensors only (`weights_only=True`).

    A file that wraps the state dict under `state_dict`, `model` or `model_state` is unwrapped, and a `module.` prefix
    (DataParallel) is removed. Raises ModelError if the file is missing, or holds anything but tensors.
    """
    if not path.is_file():
        raise ModelError(f"weights {path} do not exist", hint="check --weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            value = load_file(path)
        else:
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"weights {path} cannot be loaded: {first_line}",
            hint="give a .safetensors file or a plain state dict of tensors",
        ) from error
    except Exception as error:  # safetensors raises its own class, which has no base but Exception
        raise ModelError(f"weights {path} cannot be loaded: {error}", hint="the file is damaged") from error
    for key in ("state_dict", "model", "model_state"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not all(isinstance(v, Tensor) for v in value.values()):
        raise ModelError(f"weights {path} hold no state dict of tensors", hint="save model.state_dict()")
    return {str(k).removeprefix("module."): v for k, v in value.items()}


def fit_state_dict(model: nn.Module, state: dict[str, Tensor], *, origin: str) -> LoadReport:
    """Copy `state` into `model`; only the classifier's own tensors may differ in shape, and then keep their initial
    values.

    Raises ModelError if names are missing or unknown, or if another tensor than the head's differs in shape.
    """
    own = model.state_dict()
    # BatchNorm's step counter is absent from old files and has no influence on the network's function.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    if missing or unknown:
        example = missing[0] if missing else unknown[0]
        raise ModelError(
            f"{origin} do not fit {type(model).__name__}: {len(missing)} tensors missing, {len(unknown)} unknown "
            f"({'missing' if missing else 'unknown'}: {example})",
            hint="give the weights of the same architecture",
        )
    different = [k for k in own if k in state and state[k].shape != own[k].shape]
    head = _head_tensors(model)
    wrong = [k for k in different if k not in head]
    if wrong:
        raise ModelError(
            f"{origin} do not fit {type(model).__name__}: {wrong[0]} is {tuple(state[wrong[0]].shape)}, "
            f"expected {tuple(own[wrong[0]].shape)}",
            hint="give the weights of the same architecture",
        )
    kept = {k: v for k, v in state.items() if k not in different}
    model.load_state_dict(kept, strict=False)
    return LoadReport(loaded=len(kept), replaced_head=tuple(different))


def load_weights(model: nn.Module, path: Path) -> LoadReport:
    """Load the file `path` into `model`; see `read_state_dict` and `fit_state_dict`."""
    return fit_state_dict(model, read_state_dict(path), origin=f"weights {path}")


def _head_tensors(model: nn.Module) -> set[str]:
    """Names of the last linear (or 1x1 convolution) layer's tensors: the classifier."""
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    return {f"{last}.weight", f"{last}.bias"}
