"""Explicit Q/DQ graphs from PT2E, brought into the form that ONNX Runtime fuses into integer kernels.

PT2E writes activations as int8, leaves biases in float and a ReLU in front of the quantisation that clips anyway. ONNX
Runtime computes such a graph mostly in float. The scales stay what they are; every change here gives the same numbers,
up to the rounding of a bias to 32 bits.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

__all__ = ["fuse_friendly"]

_OFFSET = 128


class _Graph:
    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.graph = model.graph
        self.to_array = numpy_helper.to_array
        self.from_array = numpy_helper.from_array
        self.initialisers = {i.name: i for i in self.graph.initializer}
        self.producers = {output: node for node in self.graph.node for output in node.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)

    def value(self, name: str) -> np.ndarray:
        array: np.ndarray = self.to_array(self.initialisers[name])
        return array

    def add(self, name: str, array: np.ndarray) -> str:
        if name not in self.initialisers:
            self.graph.initializer.append(self.from_array(array, name))
            self.initialisers[name] = self.graph.initializer[-1]
        return name

    def drop_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        kept = [i for i in self.graph.initializer if i.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def fuse_friendly(model: Any) -> Any:
    """Change a ModelProto with int8 Q/DQ pairs in place, and return it."""
    graph = _Graph(model)
    _drop_clipped_relus(graph)
    _activations_as_uint8(graph)
    _biases_as_int32(graph)
    graph.drop_unused()
    return model


def _drop_clipped_relus(graph: _Graph) -> None:
    """A quantisation whose lowest number stands for 0 clips what a ReLU would."""
    removed = set()
    for node in graph.graph.node:
        if node.op_type != "Relu" or node.output[0] in {o.name for o in graph.graph.output}:
            continue
        readers = graph.consumers[node.output[0]]
        if readers and all(
            r.op_type == "QuantizeLinear" and len(r.input) == 3 and int(graph.value(r.input[2])) == -_OFFSET
            for r in readers
        ):
            for reader in readers:
                reader.input[0] = node.input[0]
                graph.consumers[node.input[0]].append(reader)
            removed.add(node.name)
    kept = [node for node in graph.graph.node if node.name not in removed]
    del graph.graph.node[:]
    graph.graph.node.extend(kept)


def _activations_as_uint8(graph: _Graph) -> None:
    """Numbers and zero points 128 higher: the kernels for x86 multiply unsigned by signed bytes."""
    activations = {node.output[0] for node in graph.graph.node if node.op_type == "QuantizeLinear"}
    for node in graph.graph.node:
        if node.op_type == "QuantizeLinear" or (node.op_type == "DequantizeLinear" and node.input[0] in activations):
            zero = graph.value(node.input[2])
            if zero.dtype == np.int8:
                node.input[2] = graph.add(f"{node.input[2]}_uint8", (zero.astype(np.int16) + _OFFSET).astype(np.uint8))
    # Their types changed; what the file says of them is derived again by whoever loads it.
    del graph.graph.value_info[:]


def _biases_as_int32(graph: _Graph) -> None:
    """Biases as int32 with scale (input scale x weight scale), the precision of the sums that they are added to."""
    from onnx import helper

    nodes: list[Any] = []
    for node in graph.graph.node:
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3 and node.input[2] in graph.initialisers:
            data, weight = (graph.producers.get(name) for name in node.input[:2])
            if data is not None and weight is not None and data.op_type == weight.op_type == "DequantizeLinear":
                scale = np.atleast_1d(graph.value(data.input[1]) * graph.value(weight.input[1])).astype(np.float32)
                bias = graph.value(node.input[2])
                rounded = np.clip(np.rint(bias / scale), -(2**31), 2**31 - 1).astype(np.int32)
                name = node.input[2]
                inputs = [
                    graph.add(f"{name}_{node.name}_int32", rounded),
                    graph.add(f"{name}_{node.name}_scale", np.broadcast_to(scale, bias.shape).copy()),
                    graph.add(f"{name}_{node.name}_zero", np.zeros(bias.shape, dtype=np.int32)),
                ]
                output = f"{name}_{node.name}_dequantised"
                nodes.append(
                    helper.make_node("DequantizeLinear", inputs, [output], name=f"{node.name}_bias_dequantise", axis=0)
                )
                node.input[2] = output
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
