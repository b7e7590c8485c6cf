"""Names, layers and taps. The large networks are built without memory (device meta), which runs shapes alone."""

import pytest
import torch
from torch import nn

from dspkd.errors import ModelError
from dspkd.models import Architecture, FeatureTaps, create_model, pretrained_preprocess
from dspkd.models.zoo import discover_layers


@pytest.mark.parametrize(
    ("name", "qualified"),
    [
        ("shufflenet_v2_x1_0", "torchvision/shufflenet_v2_x1_0"),
        ("mobilenet_v2", "torchvision/mobilenet_v2"),
        ("convnext_base", "timm/convnext_base"),  # both know it
        ("resnet18", "timm/resnet18"),
        ("torchvision/resnet18", "torchvision/resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("res2net101_26w_4s", "timm/res2net101_26w_4s"),
        ("shufflenet_v1_g3", "dspkd/shufflenet_v1_g3"),
        ("wide_shufflenet", "dspkd/wide_shufflenet"),
    ],
)
def test_names(name, qualified):
    architecture = Architecture(name)
    assert architecture.name == qualified
    assert Architecture(qualified).name == qualified


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("shufflenet_v2_x10", "shufflenet_v2_x1_0"),
        ("shufflenet_v1", "shufflenet_v1_g3"),
        ("timm/shufflenet_v1_g3", "shufflenet_v1_g3"),
        ("timm/shufflenet_v2_x1_0", "shufflenet_v2_x1_0"),
        ("torchvision/res2net101_26w_4s", "res2net101_26w_4s"),
        ("qqqq", "use a torchvision or timm model name"),
        ("torchvision/fcn_resnet50", "resnet50"),  # a segmentation network is no classifier
    ],
)
def test_unknown_names_get_a_suggestion(name, suggestion):
    with pytest.raises(ModelError) as caught:
        Architecture(name)
    assert f"unknown model {name!r}" in caught.value.message
    assert suggestion in caught.value.hint


SIZE = 64


def shapes(name):
    architecture = Architecture(name)
    with torch.device("meta"):
        model = architecture.build(8).eval()
    layers = architecture.layers(model)
    with FeatureTaps(model, (*layers.levels, layers.final)) as taps:
        logits = model(torch.zeros(2, 3, SIZE, SIZE, device="meta"))
        maps = taps.take()
    assert logits.shape == (2, 8)
    return layers, [tuple(maps[level].shape) for level in layers.levels], tuple(maps[layers.final].shape)


@pytest.mark.parametrize(
    ("name", "final_channels"),
    [
        ("res2net101_26w_4s", 2048),
        ("convnext_base", 1024),
        ("efficientnet_b4", 1792),
        ("tf_efficientnet_lite0", 1280),
        ("shufflenet_v2_x1_0", 1024),
        ("shufflenet_v2_x0_5", 1024),
        ("mobilenet_v2", 1280),
        ("timm/mobilenetv2_100", 1280),
        ("efficientnet_b0", 1280),
        ("shufflenet_v1_g3", 960),
        ("wide_shufflenet", 1344),
        # not in the table, so found by discovery
        ("regnety_002", 368),
        ("mobilenetv3_large_100", 960),
        ("torchvision/resnet18", 512),
        ("densenet121", 1024),
        ("efficientnetv2_rw_t", 1024),
    ],
)
def test_levels_have_strides_4_to_32_and_the_final_map_is_the_last(name, final_channels):
    layers, levels, final = shapes(name)
    assert [shape[2:] for shape in levels] == [(SIZE // s, SIZE // s) for s in (4, 8, 16, 32)]
    assert final == (2, final_channels, SIZE // 32, SIZE // 32)
    assert len(set(layers.levels)) == 4


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("shufflenet_v2_x0_5", "fc"),
        ("shufflenet_v1_g3", "output"),
        ("mobilenet_v2", "classifier.1"),
        ("efficientnet_b0", "classifier"),
    ],
)
def test_the_students_final_map_feeds_its_classifier(name, classifier):
    """Pooling the tapped map and applying the last layer gives the logits: nothing lies in between."""
    model = create_model(name, 3).eval()
    final = Architecture(name).layers(model).final
    with torch.no_grad(), FeatureTaps(model, [final]) as taps:
        logits = model(torch.rand(2, 3, SIZE, SIZE))
        torch.testing.assert_close(model.get_submodule(classifier)(taps.take()[final].mean((2, 3))), logits)


def test_discovery_agrees_with_the_table():
    architecture = Architecture("timm/resnet18")
    model = architecture.build(2)
    assert discover_layers(model, "resnet18") == architecture.layers(model)


def test_discovery_leaves_the_network_as_it_was():
    model = create_model("torchvision/resnet18", 2).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    discover_layers(model, "resnet18")
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("name", "words"), [("alexnet", "no feature map at stride 16"), ("vit_tiny_patch16_224", "does not take 128x128")]
)
def test_a_network_without_levels_is_refused(name, words):
    architecture = Architecture(name)
    with torch.device("meta"):
        model = architecture.build(2)
    with pytest.raises(ModelError, match=words):
        architecture.layers(model)
    assert hooks(model) == 0


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


def test_taps_change_nothing_and_leave_nothing(small):
    images = torch.rand(1, 3, 8, 8)
    before = small(images)
    with FeatureTaps(small, ["0", "2", "0"]) as taps:
        assert hooks(small) == 2
        assert torch.equal(small(images), before)
        maps = taps.take()
        assert set(maps) == {"0", "2"}
        assert torch.equal(maps["2"], before)
        assert taps.take() == {}
    assert hooks(small) == 0


def test_taps_let_the_gradient_through(small):
    with FeatureTaps(small, ["0"]) as taps:
        small(torch.rand(1, 3, 8, 8))
        taps.take()["0"].sum().backward()
    assert small[0].weight.grad is not None and small[2].weight.grad is None


def test_an_unknown_layer_is_named_and_no_hook_stays(small):
    with pytest.raises(ModelError, match="no layer 'nowhere'"):
        FeatureTaps(small, ["0", "nowhere"])
    assert hooks(small) == 0


def test_taps_are_removed_after_an_error(small):
    with pytest.raises(RuntimeError), FeatureTaps(small, ["0"]):
        small(torch.rand(1, 5, 8, 8))
    assert hooks(small) == 0


def test_pretrained_weights_without_a_network_say_what_to_do(monkeypatch):
    def unreachable(*_args, pretrained, **_kwargs):
        raise OSError("Name or service not known") if pretrained else AssertionError

    monkeypatch.setattr("timm.create_model", unreachable)
    with pytest.raises(ModelError, match=r"resnet18 cannot be downloaded here: Name or service.*--weights"):
        create_model("resnet18", 2, pretrained=True)


def test_the_preprocessing_of_published_weights():
    assert pretrained_preprocess("tf_efficientnet_lite0", 224).mean == (0.5, 0.5, 0.5)
    assert pretrained_preprocess("shufflenet_v2_x1_0", 96).mean == (0.485, 0.456, 0.406)
    assert pretrained_preprocess("convnext_base", 96).interpolation == "bilinear"
