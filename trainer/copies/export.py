"""Write a trained descriptor as ONNX: batch norms folded, weights stored as fp16 and computed in fp32.

The graph is written node by node, so that the file depends on the weights alone and not on an exporter's version.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from trainer.copies.network import Convolution, CopyNetwork, Residual

OPSET = 17
IR_VERSION = 8


class _Graph:
    """Nodes and weights in the order they are added; every node has one output, which is its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operation.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: np.ndarray) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def weight(self, values: torch.Tensor) -> str:
        """Store as fp16, use as fp32."""
        return self.node("Cast", self.constant(values.detach().numpy().astype(np.float16)), to=TensorProto.FLOAT)


def export(network: CopyNetwork, side: int, metadata: dict[str, str], path: Path) -> None:
    """Write the model for squares of `side` pixels; input `pictures` uint8 NHWC, output `vectors` float32."""
    network = network.cpu().eval()
    graph = _Graph()
    maps = _normalised(graph, "pictures")
    for layer in network.features:
        maps = _layer(graph, layer, maps)
    power = float(network.gem_power.detach())
    floor = graph.constant(np.array(1e-5, np.float32))
    maps = graph.node("Pow", graph.node("Max", maps, floor), graph.constant(np.array(power, np.float32)))
    pooled = graph.node("ReduceMean", maps, axes=[2, 3], keepdims=0)
    pooled = graph.node("Pow", pooled, graph.constant(np.array(1 / power, np.float32)))
    scale, mean = network.centring()
    projection = network.projection.weight * scale[:, None]
    bias = graph.constant((-mean * scale).numpy())
    vectors = graph.node("Add", graph.node("MatMul", pooled, graph.weight(projection.T)), bias)
    length = graph.node("ReduceL2", vectors, axes=[1], keepdims=1)
    graph.nodes.append(helper.make_node("Div", [vectors, length], ["vectors"], name="vectors"))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "copy descriptor",
            [helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["pictures", side, side, 3])],
            [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["pictures", len(scale)])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="wit dedup train",
    )
    helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _normalised(graph: _Graph, pictures: str) -> str:
    """Normalise the mean colour and the contrast of each image, as `CopyNetwork.forward` does."""
    planes = graph.node("Transpose", graph.node("Cast", pictures, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    planes = graph.node("Sub", planes, graph.node("ReduceMean", planes, axes=[2, 3], keepdims=1))
    square = graph.node("ReduceMean", graph.node("Mul", planes, planes), axes=[1, 2, 3], keepdims=1)
    return graph.node("Div", planes, graph.node("Add", graph.node("Sqrt", square), graph.constant(np.array(4, "f4"))))


def _layer(graph: _Graph, layer: nn.Module, maps: str) -> str:
    match layer:
        case nn.ReLU():
            return graph.node("Relu", maps)
        case Convolution():
            return _convolution(graph, layer, maps)
        case Residual():
            inner = graph.node("Relu", _convolution(graph, layer.first, maps))
            return graph.node("Relu", graph.node("Add", maps, _convolution(graph, layer.second, inner)))
    raise TypeError(f"no ONNX is written for {layer}")


def _convolution(graph: _Graph, block: Convolution, maps: str) -> str:
    weight, bias = block.folded()
    stored, added = graph.weight(weight), graph.constant(bias.detach().numpy())
    return graph.node("Conv", maps, stored, added, strides=[block.stride] * 2, pads=[block.padding] * 4)
