"""Rewriting a graph changes its operators, never its answers."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lively import settle_batch_norms
from torch import nn

from dspkd.models import Architecture
from dspkd.preprocess import Preprocess
from dspkd.quiet import quiet_libraries
from dspkd.runtimes import load_model
from dspkd_export.deploy_module import DeployModule
from dspkd_export.graph_rewrite import rewrite_graph

SIZE = 64
BATCH = ({0: torch.export.Dim("batch", min=1, max=4096)},)
NETWORKS = [
    "timm/resnet10t",
    "timm/mobilenetv2_050",
    "timm/tf_efficientnet_lite0",
    "timm/res2net50_26w_4s",
    "timm/regnety_002",
    "timm/convnext_atto",
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/squeezenet1_1",
]
aten = torch.ops.aten


def settled(model, images):
    """No parameter at the value that makes its layer do nothing, and statistics far from a fresh network's."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    for layer in model.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
            nn.init.uniform_(layer.bias, -0.3, 0.3, generator=generator)
    return settle_batch_norms(model, images)


@pytest.fixture(scope="module")
def network():
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            images = torch.randn(8, 3, SIZE, SIZE) * torch.rand(8, 3, 1, 1) + torch.randn(8, 3, 1, 1)
            model = settled(Architecture(name).build(5), images)
            made[name] = DeployModule(model, Preprocess(size=SIZE)).eval().double()
        return made[name]

    return make


def operators(module):
    """{operator: how many} of a rewritten module."""
    return Counter(node.target for node in module.traced.graph.nodes if node.op == "call_function")


def rewritten(module, *shape, dynamic=True):
    return rewrite_graph(module, torch.zeros(shape, dtype=torch.float64), BATCH if dynamic else None)


def random_input(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_same(module, *shape, dynamic=True):
    """The rewritten `module`, after a comparison with the original on an input of this shape."""
    result, images = rewritten(module, *shape, dynamic=dynamic), random_input(*shape)
    with torch.no_grad():
        torch.testing.assert_close(result(images), module(images), atol=1e-10, rtol=0.0)
    return result


def double(module):
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
            if layer.track_running_stats:
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module.eval().double()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_answers_are_the_same_in_float64(name, network):
    module = network(name)
    images = torch.rand(4, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images *= torch.tensor([0.2, 0.5, 0.8, 1.0], dtype=torch.float64).view(4, 1, 1, 1)
    logits = module.network((images - module.mean) / module.std)
    assert logits.std(0).min() > 1e-3, "every image would be answered alike"
    result = rewritten(module, 2, 3, SIZE, SIZE)
    torch.testing.assert_close(result(images), torch.softmax(logits, 1), atol=1e-10, rtol=0.0)

    left = operators(result)
    assert left[aten.batch_norm.default] == 0
    assert not any(word in str(operator) for operator in left for word in ("dropout", "chunk", "split", "getitem"))
    read = {f"traced.{node.target}" for node in result.traced.graph.nodes if node.op == "get_attr"}
    assert set(result.state_dict()) == read


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/convnext_atto", "torchvision/shufflenet_v2_x0_5"])
@torch.no_grad()
def test_exported_again_it_takes_any_batch(name, network):
    module = network(name)
    result = rewritten(module, 2, 3, SIZE, SIZE)
    program = torch.export.export(result, (random_input(2, 3, SIZE, SIZE),), dynamic_shapes=BATCH, strict=False)
    for batch in (1, 2, 5):
        images = random_input(batch, 3, SIZE, SIZE, seed=batch)
        torch.testing.assert_close(program.module()(images), module(images), atol=1e-10, rtol=0.0)


def test_the_module_is_left_as_it_was(network):
    module = network("timm/resnet10t")
    before = {key: value.clone() for key, value in module.state_dict().items()}
    result = rewritten(module, 1, 3, SIZE, SIZE, dynamic=False)
    with torch.no_grad():
        for tensor in (*result.parameters(), *result.buffers()):
            tensor.zero_()
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_result_does_not_depend_on_chance(network):
    first, second = (rewritten(network("timm/resnet10t"), 2, 3, SIZE, SIZE) for _ in range(2))
    assert first.traced.code == second.traced.code
    one, other = first.state_dict(), second.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[key], other[key]) for key in one)


class TwoReaders(nn.Module):
    """The norm reads the convolution's output, and so does the sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.conv(x)
        return x + self.norm(x)


class OneConvolutionTwoNorms(nn.Module):
    """The convolution runs at two places, each with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.other(self.conv(self.one(self.conv(x))))


class StandardisedWeight(nn.Module):
    """The weight is computed each time, so that there is nothing stored to fold into."""

    def __init__(self):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.empty(5, 3, 3, 3).normal_()), nn.BatchNorm2d(5)

    def forward(self, x):
        return self.norm(F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True)))


class Bare(nn.Module):
    """Parameters of the module itself, not of a layer in it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, 3, 3, 3).normal_())
        self.register_buffer("mean", torch.empty(5).normal_())
        self.register_buffer("variance", torch.rand(5) + 0.5)

    def forward(self, x):
        return F.batch_norm(F.conv2d(x, weight=self.weight), self.mean, self.variance, eps=0.1)


@pytest.mark.parametrize(
    ("module", "norms_left"),
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, eps=0.3)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, padding="same", dilation=2), nn.BatchNorm2d(6)), 0),
        (nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU()), 0),
        (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), nn.ReLU(inplace=True)), 0),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 5, 3, bias=False), nn.BatchNorm1d(5)), 0),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), 1),
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)), 1),
        (nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)), 1),
        (TwoReaders(), 1),
        (nn.Sequential(nn.Conv2d(3, 4, 1), OneConvolutionTwoNorms()), 0),
        (StandardisedWeight(), 1),
        (Bare(), 0),
    ],
)
def test_a_norm_is_folded_where_it_alone_reads_a_convolution(module, norms_left):
    result = assert_same(double(module), 3, 3, 9, 9)
    assert operators(result)[aten.batch_norm.default] == norms_left


def test_what_still_trains_is_left_alone():
    module = double(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)))
    module[1:].train()
    found = operators(rewritten(module, 3, 3, 9, 9))
    assert found[aten.batch_norm.default] == found[aten.dropout.default] == 1


@pytest.mark.parametrize("trained", [True, False])
def test_a_folded_weight_can_be_trained_if_the_weight_could(trained):
    module = double(nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6))).requires_grad_(trained)
    result = rewritten(module, 2, 3, 9, 9)
    assert [parameter.requires_grad for parameter in result.parameters()] == [trained, trained]


class Pieces(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.cut = cut

    def forward(self, x):
        return [piece * (i + 2) for i, piece in enumerate(self.cut(x))]


@pytest.mark.parametrize(
    ("cut", "slices"),
    [
        (lambda x: x.chunk(4, dim=1), 4),
        (lambda x: x.chunk(1, dim=1), 0),
        (lambda x: x.split(3, dim=-3), 4),
        (lambda x: x.split([1, 7, 2], dim=1), 3),
        (lambda x: torch.split_with_sizes(x, [4, 6], 1), 2),
        (lambda x: x.tensor_split(3, dim=3), 3),
        (lambda x: x.tensor_split([2, 5], dim=1), 3),
        (lambda x: [x.chunk(2, dim=1)[-1]], 1),
    ],
)
def test_pieces_become_slices(cut, slices):
    found = operators(assert_same(Pieces(cut), 3, 10, 7, 7))
    assert found == {aten.slice.Tensor: slices, aten.mul.Tensor: max(slices, 1)} or slices == 0
    assert set(found) <= {aten.slice.Tensor, aten.mul.Tensor}


def test_pieces_of_a_dynamic_dimension_stay_as_they_are():
    module = Pieces(lambda x: x.tensor_split([1], dim=0))
    # Where a piece could be empty or of length one, torch.export itself refuses.
    shapes = ({0: torch.export.Dim("batch", min=4, max=8)},)
    result = rewrite_graph(module, random_input(5, 4, 5, 5), shapes)
    assert operators(result)[aten.slice.Tensor] == 0
    for batch in (4, 6):
        images = random_input(batch, 4, 5, 5)
        torch.testing.assert_close(result(images), module(images))


def test_what_is_written_into_a_piece_is_seen_in_the_whole():
    class Writes(nn.Module):
        def forward(self, x):
            x = x * 2
            first, second = F.dropout(x, 0.5, training=False).chunk(2, dim=1)
            first.relu_()
            return x, second.detach().mul_(3), x.sum()

    result = assert_same(Writes(), 3, 4, 5, 5)
    assert result(random_input(3, 4, 5, 5))[0][:, :2].min() == 0


@pytest.mark.parametrize(
    ("pool", "flattens"),
    [
        (lambda x: x.mean((2, 3)), 1),
        (lambda x: x.mean([-1, -2]), 1),
        (lambda x: x.mean((2, 3), dtype=torch.float64), 1),
        (lambda x: x.mean((2, 3), keepdim=True), 0),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 0),
        (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), 1),
        (lambda x: F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1).flatten(1), 1),
    ],
)
def test_a_pool_over_the_whole_map_keeps_its_dimensions(pool, flattens):
    class Pools(nn.Module):
        def forward(self, x):
            return pool(x)

    result = assert_same(Pools(), 3, 4, 6, 6)
    found = operators(result)
    assert found[aten.mean.dim] == 1 and found[aten.flatten.using_ints] == flattens
    assert found[aten.adaptive_avg_pool2d.default] == 0
    (mean,) = result.traced.graph.find_nodes(op="call_function", target=aten.mean.dim)
    assert mean.args[2] is True
    assert result(random_input(5, 4, 6, 6)).shape[:2] == Pools()(random_input(5, 4, 6, 6)).shape[:2]


@pytest.mark.parametrize("dims", [(1,), (3,), (1, 2, 3), (0, 2, 3)])
def test_other_means_stay_as_they_are(dims):
    class Means(nn.Module):
        def forward(self, x):
            return x.mean(dims)

    found = operators(assert_same(Means(), 3, 4, 6, 6))
    assert found == {aten.mean.dim: 1}


@pytest.mark.parametrize("adaptive", [(2, 1), 3])
def test_a_pool_to_several_pixels_stays_as_it_is(adaptive):
    assert operators(assert_same(nn.AdaptiveAvgPool2d(adaptive), 3, 4, 6, 6)) == {aten.adaptive_avg_pool2d.default: 1}


@pytest.mark.parametrize("divisor", [None, 5])
@pytest.mark.parametrize("counts_padding", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "rounds_up", "keeps_rounding"),
    [
        (2, 2, 0, True, False),
        ((4, 2), None, 0, True, False),
        (3, 1, 1, False, False),
        (3, (1, 1), (0, 1), True, False),
        ((2, 3), 1, (1, 0), False, False),
        (4, 3, 1, True, False),
        (2, 3, 1, True, True),
        (3, 2, 1, True, True),
        (3, 2, 0, True, True),
        (2, 2, 0, False, False),
    ],
)
def test_average_pools_without_what_xnnpack_has_not(
    kernel, stride, padding, rounds_up, keeps_rounding, counts_padding, divisor
):
    pool = nn.AvgPool2d(kernel, stride, padding, rounds_up, counts_padding, divisor)
    result = assert_same(pool, 2, 3, 8, 8)
    (node,) = result.traced.graph.find_nodes(op="call_function", target=aten.avg_pool2d.default)
    assert bool(node.args[4]) == keeps_rounding
    if not keeps_rounding:
        assert not (counts_padding and any(node.args[3]))


class Everything(nn.Module):
    """One of each thing that is rewritten, small."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.dropout, self.classifier = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat([self.pool(left), right], dim=1)
        return self.classifier(self.dropout(x.mean((2, 3))))


@pytest.mark.parametrize("inside", [False, True])
def test_every_node_still_names_its_line(inside):
    """Also where the rewritten network is only a part of what is exported."""
    result = rewritten(double(Everything()), 1, 3, 16, 16, dynamic=False)
    module = nn.Sequential(result, nn.Softmax(1)) if inside else result
    program = torch.export.export(module, (random_input(1, 3, 16, 16),), strict=False)
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert len(calls) == 10 + inside
    lines = {node.target: node.meta["stack_trace"].strip().splitlines()[-1].strip() for node in calls}
    assert lines[aten.slice.Tensor] == "left, right = self.stem(x).chunk(2, dim=1)"
    assert lines[aten.mean.dim] == lines[aten.flatten.using_ints]
    assert lines[aten.mean.dim] == "return self.classifier(self.dropout(x.mean((2, 3))))"
    assert lines[aten.conv2d.default] == "return self._conv_forward(input, self.weight, self.bias)"
    assert "F.avg_pool2d" in lines[aten.avg_pool2d.default]
    assert lines[aten.constant_pad_nd.default] == lines[aten.avg_pool2d.default]


def test_onnx_keeps_the_named_batch(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = double(Everything()).float()
    example = torch.zeros(2, 3, 16, 16)
    with quiet_libraries():
        result = rewrite_graph(module, example, BATCH)
        program = torch.onnx.export(result, (example,), dynamo=True, dynamic_shapes=BATCH, verbose=False)
        program.save(tmp_path / "model.onnx")
    assert program.model_proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for batch in (1, 5):
        images = random_input(batch, 3, 16, 16).float()
        (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        np.testing.assert_allclose(got, module(images).detach().numpy(), atol=1e-5)


@torch.no_grad()
def test_a_quantiser_takes_it():
    """XNNPACK's finds pools by the module that they come from, and refuses to work if it finds a mean there."""
    pytest.importorskip("torchao")
    quantizer = pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    module, images = double(module).float(), random_input(1, 3, 9, 9).float()
    with quiet_libraries():
        graph = torch.export.export(rewrite_graph(module, images), (images,)).module(check_guards=False)
        config = quantizer.get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(graph, quantizer.XNNPACKQuantizer().set_global(config))
        prepared(images)
        quantised = convert_pt2e(prepared)
    assert any("quantize" in str(node.target) for node in quantised.graph.nodes)
    torch.testing.assert_close(quantised(images), module(images), atol=0.05, rtol=0.0)


def lowered(module, example):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet_libraries():
        program = torch.export.export(module, (example,), strict=False)
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])


def delegates(program):
    nodes = program.exported_program().graph.nodes
    return sum("executorch_call_delegate" in str(node.target) for node in nodes)


@torch.no_grad()
def test_res2net_becomes_one_delegate_with_the_same_answers(tmp_path):
    """As it comes, its splits and padded pools break it apart. A short one shows it; lowering takes its time."""
    pytest.importorskip("executorch")
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    short = timm.create_model("res2net50_26w_4s", num_classes=5, layers=(1, 2, 1, 1), base_width=8)
    module = DeployModule(settled(short, torch.randn(8, 3, SIZE, SIZE)), Preprocess(size=SIZE)).eval()
    images = torch.rand(2, 3, SIZE, SIZE) * torch.tensor([0.3, 1.0]).view(2, 1, 1, 1)
    original, program = (lowered(m, images[:1]) for m in (module, rewrite_graph(module, images[:1])))
    # One before each block, since a split is left to the CPU, and one behind the last.
    assert delegates(original) > 5
    assert delegates(program) == 1
    (tmp_path / "model.pte").write_bytes(program.to_executorch().buffer)
    got = load_model("executorch", tmp_path / "model.pte").run(images.numpy())
    assert np.abs(got[0] - got[1]).max() > 1e-2
    np.testing.assert_allclose(got, module(images).numpy(), atol=1e-5)
