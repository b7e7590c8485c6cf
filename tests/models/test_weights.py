"""Weights from files: what is read, what is replaced, and what is refused before any of its code runs."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dspkd.errors import ModelError
from dspkd.models.weights import fit_state_dict, load_weights, read_state_dict


def network(classes=3, width=4):
    torch.manual_seed(classes * 10 + width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )


@pytest.fixture
def state():
    return {k: torch.rand_like(v.float()).to(v.dtype) for k, v in network().state_dict().items()}


def assert_loaded(path, state):
    model = network()
    report = load_weights(model, path)
    assert report.loaded == len(state) and report.replaced_head == ()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def save(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_plain_state_dicts(tmp_path, state, suffix, prefix):
    assert_loaded(save(tmp_path / f"w.{suffix}", {prefix + k: v for k, v in state.items()}), state)


@pytest.mark.parametrize("wrap", [("state_dict",), ("model",), ("model_state",), ("state_dict", "model")])
def test_wrapped_state_dicts(tmp_path, state, wrap):
    value = {f"module.{k}": v for k, v in state.items()}
    for key in wrap[::-1]:
        value = {"epoch": 3, key: value}
    assert_loaded(save(tmp_path / "w.pt", value), state)


def test_only_the_prefix_is_removed(tmp_path):
    path = save(tmp_path / "w.pt", {"module.a.module.b": torch.zeros(1)})
    assert list(read_state_dict(path)) == ["a.module.b"]


def test_a_head_of_another_size_starts_afresh_and_is_reported(tmp_path, state):
    path = save(tmp_path / "w.pt", state)
    model = network(classes=7)
    head = model[4].weight.clone()
    report = load_weights(model, path)
    assert report.replaced_head == ("4.weight", "4.bias")
    assert report.loaded == len(state) - 2
    assert "4.weight, 4.bias had another number of classes" in str(report)
    assert torch.equal(model[4].weight, head)
    assert torch.equal(model[0].weight, state["0.weight"])


def test_the_head_of_real_networks_is_the_classifier():
    from dspkd.models import create_model

    for name in ("shufflenet_v2_x0_5", "mobilenet_v2", "tf_efficientnet_lite0", "resnet18"):
        with torch.device("meta"):
            source, model = create_model(name, 1000).state_dict(), create_model(name, 3)
        state = {k: torch.empty(v.shape, dtype=v.dtype, device="meta") for k, v in source.items()}
        report = fit_state_dict(model, state, origin=name)
        assert len(report.replaced_head) == 2
        assert all(source[k].shape[0] == 1000 for k in report.replaced_head)


def test_missing_unknown_and_misshapen_tensors_are_named(state):
    with pytest.raises(ModelError, match=r"test do not fit Sequential: 1 tensors missing.*missing: 1\.running_mean"):
        fit_state_dict(network(), {k: v for k, v in state.items() if k != "1.running_mean"}, origin="test")
    with pytest.raises(ModelError, match=r"1 unknown \(unknown: extra\.weight\)"):
        fit_state_dict(network(), {**state, "extra.weight": torch.zeros(1)}, origin="test")
    with pytest.raises(ModelError, match=r"0\.weight is \(9, 3, 3, 3\), expected \(4, 3, 3, 3\)"):
        fit_state_dict(network(), network(width=9).state_dict(), origin="test")


def test_a_refused_file_changes_nothing(state):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError):
        fit_state_dict(model, {**state, "0.bias": torch.zeros(99)}, origin="test")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_files_from_before_the_step_counter_load(state):
    del state["1.num_batches_tracked"]
    assert fit_state_dict(network(), state, origin="test").loaded == len(state)


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (self.target,))


@pytest.mark.parametrize("suffix", ["pt", "bin", "safetensors"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, state, suffix):
    target = tmp_path / "executed"
    path = tmp_path / f"w.{suffix}"
    torch.save({**state, "evil": Payload(str(target))}, path)
    with pytest.raises(ModelError, match=rf"w\.{suffix} cannot be loaded"):
        read_state_dict(path)
    assert not target.exists()
    # The file is live: loaded without care it does run.
    torch.load(path.rename(tmp_path / "w.any"), weights_only=False)
    assert target.exists()


def test_a_whole_model_is_refused(tmp_path):
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt cannot be loaded"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path, state, suffix, keep):
    path = save(tmp_path / f"w.{suffix}", state)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    with pytest.raises(ModelError, match=rf"weights .*w\.{suffix} cannot be loaded"):
        read_state_dict(path)


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, {"state_dict": {"a": 1}}, torch.zeros(3)])
def test_anything_but_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"w\.pt hold no state dict"):
        read_state_dict(tmp_path / "w.pt")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nothing.pt", tmp_path):
        with pytest.raises(ModelError, match=rf"weights {path} do not exist"):
            read_state_dict(path)
