"""Dot products of int8 vectors in integers: fast, and the same on every processor.

onnxruntime multiplies them by the processor's 8-bit instructions. Those of AVX2 add two products in 16 bits, which
saturate unless one factor has 7 bits; so the queries are halved, and the products are about half of the exact ones.
"""

from functools import lru_cache
from typing import Any

import numpy as np

# ONNX, opset 13: c = MatMulInteger(a, b, 64), with a uint8 (n, k), b int8 (k, m), c int32 (n, m).
_MODEL = bytes.fromhex(
    "080812003a6f0a1b0a01610a01620a017a120163220d4d61744d756c496e74656765721201672a0810022a014042017a5a150a016112100a0e"
    "0802120a0a0312016e0a0312016b5a150a016212100a0e0803120a0a0312016b0a0312016d62150a016312100a0e0806120a0a0312016e0a03"
    "12016d42040a00100d"
)
_ZERO = 64
_HALVES = np.clip(np.rint(np.arange(256, dtype=np.uint8).view(np.int8) / 2) + _ZERO, 0, 127).astype(np.uint8)

DEVIATION = 0.5**0.5
"""Twice a product differs from the exact one by this times the length of the vector, as a standard deviation."""


def halved(vectors: np.ndarray) -> np.ndarray:
    """Return half of each int8 value, rounded, as the uint8 that `products` takes."""
    return _HALVES[vectors.view(np.uint8)]


def products(halves: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the dot products of `halved` vectors `(n, k)` with int8 columns `(k, m)`: `(n, m)` int32."""
    found: np.ndarray = _running().run(None, {"a": halves, "b": columns})[0]
    return found


@lru_cache(1)
def _running() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the pipeline runs one process per core
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(_MODEL, options, providers=["CPUExecutionProvider"])
