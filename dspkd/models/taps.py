"""Reading feature maps out of a network without editing it."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from dspkd.errors import ModelError

__all__ = ["FeatureTaps"]


class FeatureTaps:
    """Collects the outputs of named layers of `model` during a forward pass.

        with FeatureTaps(teacher, ["layer4"]) as taps:
            logits = teacher(images)
            features = taps.take()["layer4"]

    The hooks are gone after the `with` block, so the model is left as it was. Raises ModelError for an unknown layer.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        modules = dict(model.named_modules())
        self._maps: dict[str, Tensor] = {}
        self._handles = []
        for layer in dict.fromkeys(layers):
            if layer not in modules:
                self.close()
                raise ModelError(f"{type(model).__name__} has no layer {layer!r}", hint="see model.named_modules()")
            self._handles.append(modules[layer].register_forward_hook(self._keep(layer)))

    def _keep(self, layer: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._maps[layer] = output

        return hook

    def take(self) -> dict[str, Tensor]:
        """The maps of the last forward pass; they are forgotten here, so that no graph outlives its step."""
        maps, self._maps = self._maps, {}
        return maps

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._maps = {}

    def __enter__(self) -> FeatureTaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
