"""What LiteRT's converter and quantiser do for `litert_target`: a script for a Python that has litert-torch, and need
not have dspkd.

python litert_script.py versions
python litert_script.py convert PROGRAM OUT
python litert_script.py halve FP32 OUT
python litert_script.py quantise FP32 IMAGES float32|uint8 OUT
python litert_script.py mirror FILE

PROGRAM is a .pt2 file (torch.export.save) of a module that takes one tensor named `image`. IMAGES is a .npy file with
float32 pictures in [0, 1], which the ranges of int8 are taken from; what is quantised then takes such pictures, or
their bytes.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

# LiteRT leaves a concatenation of more tensors to its own kernels, and so breaks the program into parts for XNNPACK.
MOST_CONCATENATED = 5
# They hand on what they are given: their tensors can share one scale, and then nothing is rounded again in between.
CARRIERS = frozenset({"CONCATENATION", "SLICE", "STRIDED_SLICE", "SPLIT", "RESHAPE", "TRANSPOSE", "PAD", "MAX_POOL_2D"})
# Names of what the exported module computes itself and not a module inside it: the softmax and what belongs to it.
NOT_INSIDE = "^(serving_default_|[^/;]*NhwcModule;)"
PACKAGES = ("litert-torch", "ai-edge-quantizer", "ai-edge-litert", "torch")


def versions() -> None:
    """Print JSON."""
    print(json.dumps({name: version(name) for name in PACKAGES}))


def convert(program: str, out: str) -> None:
    import litert_torch
    import torch

    exported = torch.export.load(program)
    _, named = exported.example_inputs
    litert_torch.convert(exported.module(check_guards=False), (), dict(named)).export(out)
    _split_concatenations(out)
    _dequantise_bytes(out)


def halve(fp32: str, out: str) -> None:
    """Weights in half precision; what is computed with them is for the runtime to say."""
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipes = recipe_manager.RecipeManager()
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        recipes.add_quantization_config(
            ".*",
            qtyping.TFLOperationName(operation),
            qtyping.OpQuantizationConfig(
                weight_tensor_config=weights,
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            algorithm_key="float_casting",
        )
    made = quantizer.Quantizer(fp32, recipes.get_quantization_recipe()).quantize()
    Path(out).write_bytes(made.quantized_model)


def quantise(fp32: str, images: str, takes: str, out: str) -> None:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe
    from ai_edge_quantizer.qtyping import TFLOperationName

    ((signature, names),) = Interpreter(fp32).get_signature_list().items()
    (name,) = names["inputs"]
    work = quantizer.Quantizer(fp32, recipe.static_wi8_ai8())
    for scope, operation in ((NOT_INSIDE, "*"), (".*", "INPUT"), (".*", "OUTPUT")):
        work.update_quantization_recipe(scope, TFLOperationName(operation), algorithm_key="no_quantize")
    if takes == "uint8":
        # Of the rules that fit, that with the youngest pattern counts, not the youngest rule.
        work.add_static_config("^", TFLOperationName.INPUT, activation_num_bits=8, weight_num_bits=8)
    ranges: dict[str, Any] = {}
    for image in np.load(images):
        # One by one: of several the quantiser takes a moving average, which forgets all but the last.
        _widen(ranges, work.calibrate({signature: [{name: image[None]}]}))
    _share(ranges, fp32)
    Path(out).write_bytes(work.quantize(ranges).quantized_model)
    if takes == "uint8":
        _take_bytes(out)


def _widen(ranges: dict[str, Any], seen: dict[str, Any]) -> None:
    """Smallest and largest value so far. In place."""
    import numpy as np

    for name, found in seen.items():
        known = ranges.setdefault(name, found)
        known["min"] = np.minimum(known["min"], found["min"])
        known["max"] = np.maximum(known["max"], found["max"])


def _share(ranges: dict[str, Any], fp32: str) -> None:
    """One range for all tensors that are only handed on between two computations, and [0, 1] for the picture, so that
    its levels are the bytes it was made from. In place.
    """
    import numpy as np
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(fp32)
    (graph,) = model.subgraphs
    (picture,) = graph.inputs
    taken = ranges[_name(graph, picture)]
    taken["min"], taken["max"] = (np.full_like(taken["min"], value) for value in (0, 1))
    group = {index: {index} for index in range(len(graph.tensors))}
    for operator, kind in _operators(model, graph):
        if kind not in CARRIERS:
            continue
        read = (
            operator.inputs
            if kind == "CONCATENATION"
            else operator.inputs[1:2]
            if kind == "SPLIT"
            else operator.inputs[:1]
        )
        for index in (*read, *operator.outputs):
            joined = group[operator.outputs[0]] | group[index]
            group.update(dict.fromkeys(joined, joined))
    for members in {id(one): one for one in group.values()}.values():
        known = [ranges[name] for name in (_name(graph, index) for index in sorted(members)) if name in ranges]
        low = min((float(np.min(one["min"])) for one in known), default=0.0)
        high = max((float(np.max(one["max"])) for one in known), default=0.0)
        for one in known if len(members) > 1 else ():
            one["min"], one["max"] = np.full_like(one["min"], low), np.full_like(one["max"], high)


def _split_concatenations(file: str) -> None:
    """In place: a long concatenation becomes several, each of at most MOST_CONCATENATED tensors."""
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    (graph,) = model.subgraphs
    split = []
    for operator, kind in _operators(model, graph):
        parts = list(operator.inputs)
        while kind == "CONCATENATION" and len(parts) > MOST_CONCATENATED:
            first, parts = parts[:MOST_CONCATENATED], parts[MOST_CONCATENATED:]
            made, step = copy.copy(graph.tensors[operator.outputs[0]]), copy.copy(operator)
            axis = operator.builtinOptions.axis
            made.shape = list(made.shape)
            made.shape[axis] = sum(int(graph.tensors[index].shape[axis]) for index in first)
            made.name = f"{_name(graph, operator.outputs[0])};first{len(graph.tensors)}".encode()
            graph.tensors.append(made)
            step.inputs, step.outputs = first, [len(graph.tensors) - 1]
            split.append(step)
            parts = [*step.outputs, *parts]
        operator.inputs = parts
        split.append(operator)
    graph.operators = split
    flatbuffer_utils.write_model(model, file)


def _pad_inside(file: str) -> None:
    """In place: what halves a map after a pad of zeros that lies where LiteRT's own would pads by itself, and reads the
    map as it is if it was only turned on the way. Either would be copied. A max pool has to read what a ReLU gives.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    (graph,) = model.subgraphs
    operators = list(_operators(model, graph))
    maker = {index: (operator, kind) for operator, kind in operators for index in operator.outputs}
    rectified = (schema.ActivationFunctionType.RELU, schema.ActivationFunctionType.RELU6)
    for operator, kind in operators:
        if kind not in ("MAX_POOL_2D", "DEPTHWISE_CONV_2D", "CONV_2D"):
            continue
        options = operator.builtinOptions
        for source, pads in list(_sources(model, graph, maker, operator.inputs[0])):
            if not any(pads):
                operator.inputs[0] = source
                continue
            if options.padding != schema.Padding.VALID or getattr(options, "dilationHFactor", 1) != 1:
                continue
            made, _ = maker.get(source, (None, ""))
            activation = getattr(getattr(made, "builtinOptions", None), "fusedActivationFunction", None)
            plain = graph.tensors[source].shape
            height, width = (
                (options.filterHeight, options.filterWidth)
                if kind == "MAX_POOL_2D"
                else graph.tensors[operator.inputs[1]].shape[1:3]
            )
            own = [
                *_own_pads(int(plain[1]), int(options.strideH), int(height)),
                *_own_pads(int(plain[2]), int(options.strideW), int(width)),
            ]
            if pads == [0, 0, *own, 0, 0] and (kind != "MAX_POOL_2D" or activation in rectified):
                operator.inputs[0], options.padding = source, schema.Padding.SAME
    _drop_unread(model, graph)
    flatbuffer_utils.write_model(model, file)


def _sources(model: Any, graph: Any, maker: dict[int, tuple[Any, str]], index: int) -> Iterator[tuple[int, list[int]]]:
    """Tensors further up that `index` is only a turned and padded form of, in its own layout, and with what pads."""
    axes, pads = [0, 1, 2, 3], [0] * 8
    while index in maker:
        operator, kind = maker[index]
        if kind == "TRANSPOSE" and len(graph.tensors[index].shape) == 4:
            permutation = _constant(model, graph, operator.inputs[1])
            axes = [permutation[axis] for axis in axes]
        elif kind == "PAD" and len(graph.tensors[index].shape) == 4:
            amounts = _constant(model, graph, operator.inputs[1])
            pads = [known + amounts[2 * axes[k // 2] + k % 2] for k, known in enumerate(pads)]
        else:
            return
        index = int(operator.inputs[0])
        if axes == [0, 1, 2, 3]:
            yield index, pads


def _drop_unread(model: Any, graph: Any) -> None:
    """Transposes and pads whose result nobody reads any more."""
    while True:
        read = {index for operator in graph.operators for index in operator.inputs} | set(graph.outputs)
        kept = [
            operator
            for operator, kind in _operators(model, graph)
            if kind not in ("TRANSPOSE", "PAD") or operator.outputs[0] in read
        ]
        if len(kept) == len(graph.operators):
            return
        graph.operators = kept


def _own_pads(length: int, stride: int, size: int) -> tuple[int, int]:
    """What LiteRT's padding "same" puts before and after `length` places."""
    total = max(0, (-(-length // stride) - 1) * stride + size - length)
    return total // 2, total - total // 2


def _constant(model: Any, graph: Any, index: int) -> list[int]:
    """The numbers of an int32 tensor that is part of the model."""
    import numpy as np

    data = np.asarray(model.buffers[graph.tensors[index].buffer].data, dtype=np.uint8)
    return [int(number) for number in data.view("<i4")]


def mirror(file: str) -> None:
    """In place: takes the picture as it is, and reverses the order of all its numbers first: rows, columns and colours.
    What is padded then pads inside.
    """
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    (graph,) = model.subgraphs
    (mirrored,) = graph.inputs

    def added(name: str, shape: list[int]) -> int:
        tensor = copy.copy(graph.tensors[mirrored])
        tensor.name, tensor.shape = name.encode(), shape
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def constant(name: str, numbers: list[int]) -> int:
        buffer, tensor = schema.BufferT(), schema.TensorT()
        buffer.data = np.frombuffer(np.array(numbers, "<i4").tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = name.encode(), [len(numbers)], schema.TensorType.INT32
        tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    shape = [int(length) for length in graph.tensors[mirrored].shape]
    # As one row: LiteRT of some years ago reverses along one axis only, and says nothing of the others.
    row = [1, math.prod(shape)]
    taken, flat, turned = added(_name(graph, mirrored), shape), added("as one row", row), added("turned", row)
    graph.tensors[mirrored].name = b"mirrored"
    kinds = schema.BuiltinOperator
    _begin_with(
        model,
        (kinds.RESHAPE, [taken, constant("row", row)], flat),
        (kinds.REVERSE_V2, [flat, constant("axis", [1])], turned),
        (kinds.RESHAPE, [turned, constant("picture", shape)], mirrored),
    )
    flatbuffer_utils.write_model(model, file)
    _pad_inside(file)


def _dequantise_bytes(file: str) -> None:
    """In place: bytes that are cast to float32 are dequantised with scale 1 instead, which gives the same numbers.
    XNNPACK does that; a cast it leaves to LiteRT's own kernels.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    (graph,) = model.subgraphs
    for operator, kind in _operators(model, graph):
        read, made = (graph.tensors[indices[0]] for indices in (operator.inputs, operator.outputs))
        if (kind, read.type, made.type) == ("CAST", schema.TensorType.UINT8, schema.TensorType.FLOAT32):
            operator.opcodeIndex = _operator_code(model, schema.BuiltinOperator.DEQUANTIZE)
            operator.builtinOptions, operator.builtinOptionsType = None, schema.BuiltinOptions.NONE
            read.quantization = schema.QuantizationParametersT()
            read.quantization.scale, read.quantization.zeroPoint = [1.0], [0]
    flatbuffer_utils.write_model(model, file)


def _take_bytes(file: str) -> None:
    """In place: the picture, whose int8 levels are its bytes less 128, is taken as uint8. By way of float32, since
    XNNPACK turns floats into either but not one into the other.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(file)
    (graph,) = model.subgraphs
    (levels,) = graph.inputs
    picture, floats = copy.copy(graph.tensors[levels]), copy.copy(graph.tensors[levels])
    (scale,), (zero,) = picture.quantization.scale, picture.quantization.zeroPoint
    if abs(scale * 255 - 1) > 1e-6 or zero != -128:
        raise ValueError(f"the picture has scale {scale} and zero point {zero}, not 1/255 and -128")
    picture.type, picture.name = schema.TensorType.UINT8, b"image"
    picture.quantization = copy.copy(picture.quantization)
    picture.quantization.zeroPoint = [0]
    floats.type, floats.name, floats.quantization = schema.TensorType.FLOAT32, b"image in [0, 1]", None
    graph.tensors += [picture, floats]
    taken, between = len(graph.tensors) - 2, len(graph.tensors) - 1
    _begin_with(
        model,
        (schema.BuiltinOperator.DEQUANTIZE, [taken], between),
        (schema.BuiltinOperator.QUANTIZE, [between], levels),
    )
    flatbuffer_utils.write_model(model, file)


def _begin_with(model: Any, *steps: tuple[int, list[int], int]) -> None:
    """In place: these operators (builtin code, tensors read, tensor made) come first, and the model takes what the
    first of them reads first.
    """
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    operators = []
    for kind, read, made in steps:
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs, step.outputs = _operator_code(model, kind), read, [made]
        operators.append(step)
    graph.operators, graph.inputs = [*operators, *graph.operators], steps[0][1][:1]
    for signature in model.signatureDefs:
        for named in signature.inputs:
            named.tensorIndex = steps[0][1][0]


def _operator_code(model: Any, kind: int) -> int:
    """Index of a new entry for a builtin operator."""
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _operators(model: Any, graph: Any) -> Iterator[tuple[Any, str]]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        yield operator, names[max(code.builtinCode, code.deprecatedBuiltinCode)]


def _name(graph: Any, index: int) -> str:
    return str(graph.tensors[index].name.decode())


if __name__ == "__main__":
    # Its own folder comes first there, and its modules would be found before others of the same name.
    sys.path.pop(0)
    commands: dict[str, Callable[..., None]] = {
        "versions": versions,
        "convert": convert,
        "halve": halve,
        "quantise": quantise,
        "mirror": mirror,
    }
    commands[sys.argv[1]](*sys.argv[2:])
