"""The plug: any model of the right shape and metadata, and a clear refusal of every other."""

import json
import pickle

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dedup.copies.detector import Detector, DetectorError

DIMENSIONS = 64


def save(path, *, side=16, dimensions=DIMENSIONS, kind=TensorProto.UINT8, name="pictures", metadata=None):
    """Write a model whose vectors are random projections of the pixels."""
    weights = np.random.default_rng(1).normal(size=(side * side * 3, dimensions)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [name], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["f"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["v"]),
        helper.make_node("ReduceL2", ["v"], ["l"], axes=[1], keepdims=1),
        helper.make_node("Div", ["v", "l"], ["vectors"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, kind, ["n", side, side, 3])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dimensions])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = {"wit.side": side, "wit.sure": 0.7, "wit.propose": 0.4} if metadata is None else metadata
    helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    onnx.save(model, path)
    return path


def pictures(count: int, side: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(2).integers(0, 256, (count, side, side, 3), np.uint8))


def test_vectors_are_int8_of_one_length(tmp_path):
    detector = Detector.load(save(tmp_path / "m.onnx"))
    vectors = detector.describe(pictures(5))
    assert vectors.dtype == np.int8
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    assert np.allclose(lengths, detector.scale, rtol=0.02)
    assert detector.cosine(detector.score(0.5)) == pytest.approx(0.5, abs=1e-4)


def test_a_picture_has_one_vector_whatever_it_is_described_with(tmp_path):
    detector = Detector.load(save(tmp_path / "m.onnx"))
    some = pictures(150)
    together = detector.describe(some)
    assert np.array_equal(together, np.concatenate([detector.describe([one]) for one in some]))


def test_pictures_of_any_size_are_squashed(tmp_path):
    detector = Detector.load(save(tmp_path / "m.onnx"))
    sizes = [np.zeros((1, 1, 3), np.uint8), np.zeros((300, 20, 3), np.uint8)[::2], pictures(1, 40)[0][:, ::-1]]
    assert detector.describe(sizes).shape == (3, DIMENSIONS)
    assert detector.describe([]).shape == (0, DIMENSIONS)


def test_it_travels_to_another_process(tmp_path):
    detector = Detector.load(save(tmp_path / "m.onnx"))
    before = detector.describe(pictures(2))
    travelled = pickle.loads(pickle.dumps(detector))
    assert np.array_equal(travelled.describe(pictures(2)), before)
    assert travelled.sha256 == detector.sha256


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    refused = {
        tmp_path / "absent.onnx": "cannot read",
        tmp_path / "text.onnx": "onnxruntime cannot open it",
        save(tmp_path / "float.onnx", kind=TensorProto.FLOAT): "uint8",
        save(tmp_path / "name.onnx", name="input"): "'pictures'",
        save(tmp_path / "bare.onnx", metadata={}): "wit.side",
        save(tmp_path / "side.onnx", metadata={"wit.side": 32, "wit.sure": 0.7, "wit.propose": 0.4}): "32 pixels",
        save(tmp_path / "dimensions.onnx", dimensions=100): "100 dimensions",
        save(tmp_path / "order.onnx", metadata={"wit.side": 16, "wit.sure": 0.4, "wit.propose": 0.7}): "wit.propose",
    }
    for path, said in refused.items():
        with pytest.raises(DetectorError, match=said) as error:
            Detector.load(path)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)
