"""Pictures to copy, and a copy detector that needs no training."""

import json
import random
from pathlib import Path

import cv2
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIMENSIONS = 64


def save_model(path: Path, *, side=16, dimensions=DIMENSIONS, kind=TensorProto.UINT8, name="pictures", metadata=None):
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


def scene(seed: int, height: int = 200, width: int = 280) -> np.ndarray:
    """Draw ellipses of all sizes and colours over each other."""
    chance = random.Random(seed)
    picture = np.full((height, width, 3), [chance.randint(0, 255) for _ in "rgb"], np.uint8)
    for _ in range(160):
        centre = (chance.randint(0, width), chance.randint(0, height))
        axes = (chance.randint(3, 30), chance.randint(3, 30))
        colour = [chance.randint(0, 255) for _ in "rgb"]
        cv2.ellipse(picture, centre, axes, chance.randint(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    return picture
