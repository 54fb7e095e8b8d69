"""Dot products of int8 vectors in integers: fast, and the same on every processor.

onnxruntime multiplies them by the processor's 8-bit instructions. Those of AVX2 add two products of unsigned by signed
bytes in 16 bits, which saturate unless the signed factor has 7 bits; so the queries are halved, and the products are
about half of the exact ones.
"""

from functools import lru_cache
from typing import Any

import numpy as np

# ONNX, opset 13: c = MatMulInteger(a, Transpose(b), 128), with a uint8 (n, k), b int8 (m, k), c int32 (n, m).
_MODEL = bytes.fromhex(
    "08083a92010a200a016212017422095472616e73706f73652a0d0a047065726d40014000a001070a1b0a01610a01740a017a120163220d4d"
    "61744d756c496e74656765721201672a0910022a02800142017a5a150a016112100a0e0802120a0a0312016e0a0312016b5a150a01621210"
    "0a0e0803120a0a0312016d0a0312016b62150a016312100a0e0806120a0a0312016e0a0312016d42040a00100d"
)
SHIFT = 128

DEVIATION = 0.5**0.5
"""Twice a product differs from the exact one by this times the length of the vector, as a standard deviation."""


def shifted(vectors: np.ndarray) -> np.ndarray:
    """Return int8 values plus `SHIFT`, as the uint8 that `products` takes."""
    return vectors.view(np.uint8) ^ np.uint8(SHIFT)


def halved(queries: np.ndarray) -> np.ndarray:
    """Return half of each int8 value, rounded, as the int8 that `products` takes."""
    return _HALVES[queries.view(np.uint8)]


_HALVES = np.rint(np.arange(256, dtype=np.uint8).view(np.int8) / 2).astype(np.int8)


def products(vectors: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Return the dot products of `shifted` vectors `(n, k)` with `halved` queries `(m, k)`: `(n, m)` int32."""
    found: np.ndarray = _running().run(None, {"a": vectors, "b": halves})[0]
    return found


@lru_cache(1)
def _running() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the pipeline runs one process per core
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(_MODEL, options, providers=["CPUExecutionProvider"])
