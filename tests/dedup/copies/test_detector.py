"""The plug: any model of the right shape and metadata, and a clear refusal of every other."""

import pickle

import numpy as np
import pytest
from onnx import TensorProto
from support.copies import DIMENSIONS, save_model

from dedup.copies.detector import Detector, DetectorError


def pictures(count: int, side: int = 16) -> list[np.ndarray]:
    return list(np.random.default_rng(2).integers(0, 256, (count, side, side, 3), np.uint8))


def test_vectors_are_int8_of_one_length(tmp_path):
    detector = Detector.load(save_model(tmp_path / "m.onnx"))
    vectors = detector.describe(pictures(5))
    assert vectors.dtype == np.int8
    lengths = np.linalg.norm(vectors.astype(float), axis=1)
    assert np.allclose(lengths, detector.scale, rtol=0.02)
    assert detector.cosine(detector.score(0.5)) == pytest.approx(0.5, abs=1e-4)


def test_a_picture_has_one_vector_whatever_it_is_described_with(tmp_path):
    detector = Detector.load(save_model(tmp_path / "m.onnx"))
    some = pictures(150)
    together = detector.describe(some)
    assert np.array_equal(together, np.concatenate([detector.describe([one]) for one in some]))


def test_pictures_of_any_size_are_squashed(tmp_path):
    detector = Detector.load(save_model(tmp_path / "m.onnx"))
    sizes = [np.zeros((1, 1, 3), np.uint8), np.zeros((300, 20, 3), np.uint8)[::2], pictures(1, 40)[0][:, ::-1]]
    assert detector.describe(sizes).shape == (3, DIMENSIONS)
    assert detector.describe([]).shape == (0, DIMENSIONS)


def test_it_travels_to_another_process(tmp_path):
    detector = Detector.load(save_model(tmp_path / "m.onnx"))
    before = detector.describe(pictures(2))
    travelled = pickle.loads(pickle.dumps(detector))
    assert np.array_equal(travelled.describe(pictures(2)), before)
    assert travelled.sha256 == detector.sha256


def test_what_is_no_detector_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    refused = {
        tmp_path / "absent.onnx": "cannot read",
        tmp_path / "text.onnx": "onnxruntime cannot open it",
        save_model(tmp_path / "float.onnx", kind=TensorProto.FLOAT): "uint8",
        save_model(tmp_path / "name.onnx", name="input"): "'pictures'",
        save_model(tmp_path / "bare.onnx", metadata={}): "wit.side",
        save_model(tmp_path / "side.onnx", metadata={"wit.side": 32, "wit.sure": 0.7, "wit.propose": 0.4}): "32 pixels",
        save_model(tmp_path / "dimensions.onnx", dimensions=100): "100 dimensions",
        save_model(
            tmp_path / "order.onnx", metadata={"wit.side": 16, "wit.sure": 0.4, "wit.propose": 0.7}
        ): "must rise",
        save_model(
            tmp_path / "loose.onnx",
            metadata={"wit.side": 16, "wit.sure": 0.9, "wit.propose": 0.4, "wit.loose": 0.5},
        ): "must rise",
    }
    for number, value in enumerate(("x", None, True, [0.7])):
        facts = {"wit.side": 16, "wit.sure": value, "wit.propose": 0.4}
        refused[save_model(tmp_path / f"{number}.onnx", metadata=facts)] = "must be numbers"
    for path, said in refused.items():
        with pytest.raises(DetectorError, match=said) as error:
            Detector.load(path)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)


def test_the_smaller_the_set_the_more_is_looked_at(tmp_path):
    facts = {"wit.side": 16, "wit.sure": 0.9, "wit.propose": 0.6, "wit.loose": 0.4}
    detector = Detector.load(save_model(tmp_path / "model.onnx", metadata=facts))
    sizes = (0, 1, 1_000, 10_000, 100_000, 2_000_000)
    assert [detector.propose_in(size) for size in sizes] == pytest.approx([0.4, 0.4, 0.4, 0.5, 0.6, 0.6])
    plain = Detector.load(save_model(tmp_path / "plain.onnx"))
    assert {plain.propose_in(size) for size in sizes} == {plain.card.propose}
