"""Any network rewritten for a compiler: the same function in eval mode, in fewer and plainer operators.

Works on the graph that torch.export makes, so it needs no knowledge of how a library writes its networks. What it
leaves is exported again like any other module.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.traceback import preserve_node_meta
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dspkd.quiet import quiet_libraries

__all__ = ["RewrittenModule", "rewrite_graph"]

aten = torch.ops.aten

_CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
    }
)
# All of them give (input, probability, train).
_DROPOUTS = frozenset(
    {
        aten.dropout.default,
        aten.dropout_.default,
        aten.feature_dropout.default,
        aten.feature_dropout_.default,
        aten.alpha_dropout.default,
        aten.alpha_dropout_.default,
        aten.feature_alpha_dropout.default,
    }
)
# They return the tensor that they are given. `clone` and `contiguous` are not among them: a later operator may write
# in place or ask for the memory layout.
_ALIASES = frozenset({aten.alias.default, aten.detach.default, aten.detach_.default})
# Each with the place of `dim` among its arguments. The lengths of the pieces are read off the traced outputs.
_SPLITS = {
    aten.chunk.default: 2,
    aten.split.Tensor: 2,
    aten.split.sizes: 2,
    aten.split_with_sizes.default: 2,
    aten.tensor_split.sections: 2,
    aten.tensor_split.indices: 2,
}


class RewrittenModule(nn.Module):
    """A rewritten graph as a module: takes and gives what the original does.

    Runs node by node, so that a trace of it has, at each node, the line of the original's code. Generated code would
    put lines of its own there.
    """

    def __init__(self, traced: GraphModule) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, image: Tensor) -> Any:
        with preserve_node_meta():
            return Interpreter(self.traced).run(image)


@torch.no_grad()
def rewrite_graph(
    module: nn.Module, example: Tensor, dynamic_shapes: tuple[dict[int, Any]] | None = None
) -> RewrittenModule:
    """A copy of `module`, which has to be in eval mode, ready to be exported, alone or as a part of another module.

    `module` is left as it is, and no tensor is shared with it. `example` is its one input and `dynamic_shapes` the
    dynamic dimensions of that, `({0: Dim("batch")},)` for instance, as torch.export.export takes them. A static
    dimension is a constant of the copy; a copy with a dynamic batch can also be exported for a batch of one.

    Exact up to rounding, in this order:

    1. dropout, which does nothing in eval mode, is dropped, and so are operators that return their input;
    2. a batch norm is folded into the convolution before it, if nothing else reads that convolution's output;
    3. chunk, split and the like become slices, which XNNPACK can join to their neighbours; it leaves an operator with
       several outputs, and with it every neighbour, to the CPU;
    4. a pool to 1x1, or a mean over height and width, becomes a mean that keeps its dimensions, and is flattened
       afterwards where it did not: the form that XNNPACK knows. (torch writes the pool of a permuted map with strides,
       and ONNX needs ten more nodes to repeat that.)
    5. an average pool loses the two options that XNNPACK has not: rounding its output's size up where nothing is
       rounded, and counting its padding, which is written out as zeros around the map.

    Nodes keep their `stack_trace`, so that a compiler can still name the line of model code. What does not fit (a norm
    that computes its own statistics, a split of a dynamic dimension) stays as it is.

    Raises what torch.export raises for a module that it cannot trace.
    """
    with quiet_libraries():
        program = torch.export.export(module, (example,), dynamic_shapes=dynamic_shapes, strict=False)
    # With guards the graph would carry a submodule that only repeats the conditions on shapes.
    traced = program.module(check_guards=False)
    assert isinstance(traced, GraphModule)
    for step in (
        _drop_identities,
        _fold_batch_norms,
        _split_by_slices,
        _pool_by_mean,
        _keep_dimensions_in_mean,
        _plain_average_pools,
    ):
        step(traced)
    for node in list(traced.graph.nodes):
        if node.op == "get_attr" and not node.users:
            traced.graph.erase_node(node)
    traced.graph.lint()
    # Takes over only the tensors that the graph still reads, and nothing of what ties the trace to its example.
    return RewrittenModule(copy.deepcopy(GraphModule(traced, traced.graph)))


def _drop_identities(traced: GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if node.target in _ALIASES or (node.target in _DROPOUTS and not _argument(node, 2, "train")):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _fold_batch_norms(traced: GraphModule) -> None:
    graph = traced.graph
    for norm in graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        conv = norm.args[0]
        if conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
            continue
        kernel, bias = _argument(conv, 1, "weight"), _argument(conv, 2, "bias")
        names = ("weight", "bias", "running_mean", "running_var")
        operands = [_argument(norm, 1 + place, name) for place, name in enumerate(names)]
        if _argument(norm, 5, "training") or operands[2] is None or operands[3] is None:
            continue
        # A weight may be computed, as in networks that standardise their weights.
        if not all(operand is None or operand.op == "get_attr" for operand in (*operands, kernel, bias)):
            continue
        tensors = [None if o is None else _stored(traced, o) for o in (kernel, bias, *operands)]
        folded = _folded(tensors, _argument(norm, 7, "eps"))
        prefix = str(kernel.target).rpartition(".")[0]
        with graph.inserting_before(conv):
            new = [
                _store(traced, f"{prefix}.{name}".lstrip("."), tensor, like=kernel)
                for name, tensor in zip(("folded_weight", "folded_bias"), folded, strict=True)
            ]
        conv.args = (conv.args[0], *new, *conv.args[3:])
        conv.kwargs = {key: value for key, value in conv.kwargs.items() if key not in ("weight", "bias")}
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)


def _folded(tensors: Sequence[Any], eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the norm's work too. `tensors`: its weight and bias, the norm's
    weight, bias, mean and variance. Computed in float64, so that folding costs one rounding.
    """
    kernel, bias, gain, offset, mean, variance = tensors
    bias, gain, offset = (None if operand is None else operand.double() for operand in (bias, gain, offset))
    weight, shift = fuse_conv_bn_weights(kernel.double(), bias, mean.double(), variance.double(), eps, gain, offset)
    return weight.detach().to(kernel.dtype), shift.detach().to(kernel.dtype)


def _split_by_slices(traced: GraphModule) -> None:
    graph = traced.graph
    for node in list(graph.nodes):
        if node.target not in _SPLITS or not all(user.target is operator.getitem for user in node.users):
            continue
        dim = _argument(node, _SPLITS[node.target], "dim") or 0
        source = node.args[0]
        ends = list(accumulate(piece.shape[dim] for piece in node.meta["val"]))
        # A symbolic length cannot be written down as a constant.
        if not all(isinstance(end, int) for end in ends):
            continue
        for piece in list(node.users):
            index = piece.args[1] % len(ends)
            start, end = ends[index] - node.meta["val"][index].shape[dim], ends[index]
            replacement = source
            if piece.users and end - start < ends[-1]:
                with graph.inserting_before(piece):
                    replacement = graph.call_function(aten.slice.Tensor, (source, dim, start, end))
                replacement.meta = _origin(piece) | {"val": piece.meta["val"]}
            piece.replace_all_uses_with(replacement)
            graph.erase_node(piece)
        graph.erase_node(node)


def _pool_by_mean(traced: GraphModule) -> None:
    for node in traced.graph.find_nodes(op="call_function", target=aten.adaptive_avg_pool2d.default):
        if list(_argument(node, 1, "output_size")) == [1, 1]:
            node.target, node.args, node.kwargs = aten.mean.dim, (_argument(node, 0, "self"), [-1, -2], True), {}
            node.meta = _origin(node) | {"val": node.meta["val"]}


def _keep_dimensions_in_mean(traced: GraphModule) -> None:
    graph = traced.graph
    for node in graph.find_nodes(op="call_function", target=aten.mean.dim):
        source, dims = node.args[0], _argument(node, 1, "dim")
        if source.meta["val"].ndim != 4 or _argument(node, 2, "keepdim") or dims is None:
            continue
        if {dim % 4 for dim in dims} != {2, 3}:
            continue
        with graph.inserting_before(node):
            kept = graph.call_function(aten.mean.dim, (source, dims, True), {"dtype": node.kwargs.get("dtype")})
            flat = graph.call_function(aten.flatten.using_ints, (kept, 1))
        kept.meta = _origin(node)
        flat.meta = _origin(node) | {"val": node.meta["val"]}
        node.replace_all_uses_with(flat)
        graph.erase_node(node)


def _plain_average_pools(traced: GraphModule) -> None:
    graph = traced.graph
    for node in graph.find_nodes(op="call_function", target=aten.avg_pool2d.default):
        source, kernel = node.args[0], _pair(_argument(node, 1, "kernel_size"))
        stride = _pair(_argument(node, 2, "stride") or kernel)
        padding = _pair(_argument(node, 3, "padding") or [0])
        rounds_up, divisor = _argument(node, 4, "ceil_mode"), _argument(node, 6, "divisor_override")
        counts_padding = _argument(node, 5, "count_include_pad") is not False
        if rounds_up:
            axes = zip(source.meta["val"].shape[-2:], kernel, stride, padding, strict=True)
            if any(not isinstance(size, int) or (size + 2 * p - k) % s for size, k, s, p in axes):
                continue
        if counts_padding and any(padding):
            with graph.inserting_before(node):
                padded = graph.call_function(
                    aten.constant_pad_nd.default, (source, [*padding[1:] * 2, *padding[:1] * 2])
                )
            padded.meta = _origin(node)
            source, padding = padded, [0, 0]
        node.args = (source, kernel, stride, padding, False, counts_padding, divisor)
        node.kwargs = {}


def _pair(numbers: Sequence[int]) -> list[int]:
    """One number stands for height and width."""
    return list(numbers) * 2 if len(numbers) == 1 else list(numbers)


def _origin(node: Node) -> dict[str, Any]:
    """The line that a node comes from, for another that takes its place. Not the function and module, by which
    quantisers find a pool, say: they would not know a mean.
    """
    return {"stack_trace": node.stack_trace}


def _argument(node: Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _stored(traced: GraphModule, node: Node) -> Tensor:
    tensor = operator.attrgetter(str(node.target))(traced)
    assert isinstance(tensor, Tensor)
    return tensor


def _store(traced: GraphModule, name: str, tensor: Tensor, *, like: Node) -> Node:
    """A node that reads `tensor`, a new parameter with the origin of `like`. A number is added to a name that is taken:
    one convolution may run at two places, with a norm of its own at each.
    """
    taken = {key for key, _ in traced.named_parameters()}
    free = next(n for n in (name, *(f"{name}_{k}" for k in range(1, len(taken) + 1))) if n not in taken)
    path, _, last = free.rpartition(".")
    owner = traced.get_submodule(path)
    owner.register_parameter(last, nn.Parameter(tensor, requires_grad=_stored(traced, like).requires_grad))
    node = traced.graph.get_attr(free)
    node.meta = _origin(like)
    return node
