"""Where an int8 program turns its picture from NCHW into NHWC."""

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

from dspkd_export.executorch_target import quantised_by, turn_before_quantising
from dspkd_export.quantised_graph import xnnpack_quantiser

QUANTISE = "quantized_decomposed.quantize_per_tensor.default"
TURN = torch.ops.aten._to_copy.default


class Small(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, image):
        return self.convolution((image - 0.5) / 0.25)


def quantised(channels):
    torch.manual_seed(0)
    images = torch.rand(4, channels, 16, 16)
    exported = torch.export.export(Small(channels).eval(), (images[:1],), strict=False)
    return quantised_by(xnnpack_quantiser(), exported.module(check_guards=False), images), images


def test_the_picture_is_turned_as_floats_and_nothing_else_changes():
    graph, images = quantised(3)
    before = graph(images[:1])
    turn_before_quantising(graph)
    (turn,) = (node for node in graph.graph.nodes if node.target == TURN)
    assert turn.kwargs == {"memory_format": torch.channels_last}
    assert "div" in str(turn.args[0].target)
    assert [str(node.target) for node in turn.users] == [QUANTISE]
    assert torch.equal(graph(images[:1]), before)


def test_what_is_no_picture_stays():
    graph, _ = quantised(8)
    turn_before_quantising(graph)
    assert not [node for node in graph.graph.nodes if node.target == TURN]


@pytest.mark.parametrize("turned", [False, True])
def test_the_program_moves_floats_and_not_bytes(tmp_path, turned):
    """XNNPACK's own profile of the program says which transposition it runs."""
    pytest.importorskip("executorch.devtools")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.devtools import Inspector
    from executorch.exir import to_edge_transform_and_lower
    from executorch.extension.pybindings.portable_lib import _load_for_executorch_from_buffer

    graph, images = quantised(3)
    if turned:
        turn_before_quantising(graph)
    exported = torch.export.export(graph, (images[:1],), strict=False)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    method = _load_for_executorch_from_buffer(program.buffer, enable_etdump=True)
    (answer,) = method.forward((images[:1],))
    assert torch.allclose(answer, graph(images[:1]), atol=0.05)
    method.write_etdump_result_to_file(str(tmp_path / "d.etdp"))
    names = [event.name for block in Inspector(str(tmp_path / "d.etdp")).event_blocks for event in block.events]
    first = next(name for name in names if name.startswith(("Transpose", "Convert")))
    assert first.startswith("Transpose (ND, X32)" if turned else "Convert")
