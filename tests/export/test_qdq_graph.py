"""Q/DQ graphs of PT2E in the form that ONNX Runtime computes in integers: the same numbers, faster."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dspkd_export.qdq_graph import fuse_friendly


def small_graph(zero_point):
    """image -> Q/DQ -> Conv (per-channel int8 weight, float bias) -> Relu -> Q/DQ -> answer, activations int8."""
    rng = np.random.default_rng(0)
    values = {
        "scale_in": np.array(0.02, np.float32),
        "zero_in": np.array(-3, np.int8),
        "scale_out": np.array(0.05, np.float32),
        "zero_out": np.array(zero_point, np.int8),
        "weight": rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8),
        "weight_scale": rng.uniform(0.001, 0.01, 4).astype(np.float32),
        "weight_zero": np.zeros(4, np.int8),
        "bias": rng.normal(0, 0.5, 4).astype(np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale_in", "zero_in"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale_in", "zero_in"], ["dq"], "dq"),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], "w", axis=0),
        helper.make_node("Conv", ["dq", "w", "bias"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "scale_out", "zero_out"], ["q2"], "q2"),
        helper.make_node("DequantizeLinear", ["q2", "scale_out", "zero_out"], ["answer"], "dq2"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 4, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def answer(model, optimised=None):
    options = onnxruntime.SessionOptions()
    if optimised is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath, options.log_severity_level = str(optimised), 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    image = np.random.default_rng(1).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)
    return session.run(None, {"image": image})[0]


@pytest.mark.parametrize("zero_point", [-128, -100])
def test_the_numbers_stay(zero_point):
    before = answer(small_graph(zero_point))
    after = answer(fuse_friendly(small_graph(zero_point)))
    # A bias rounded to the accumulator's step can move a sum over the edge of one output step, 0.05.
    assert np.abs(before - after).max() <= 0.0501
    assert (before != after).mean() < 0.01
    assert len(np.unique(before)) > 20


def test_a_relu_goes_only_where_the_quantisation_clips_at_zero():
    def operators(zero_point):
        model = fuse_friendly(small_graph(zero_point))
        onnx.checker.check_model(model, full_check=True)
        return [node.op_type for node in model.graph.node]

    assert "Relu" not in operators(-128)
    assert "Relu" in operators(-100)


def test_onnx_runtime_computes_it_in_integers(tmp_path):
    answer(fuse_friendly(small_graph(-128)), tmp_path / "optimised.onnx")
    assert "QLinearConv" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
