"""A copy detector: any ONNX model from squares of bytes to unit vectors, with its settings in the model's metadata.

The input is uint8 `(n, side, side, 3)` RGB, the output float32 `(n, dimensions)` of length 1. Vectors are returned as
int8, and all later steps use integers: given the vectors, every machine makes the same decisions.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np

from dedup.errors import DedupError

_FEW_IMAGES, _MANY_IMAGES = 1_000, 100_000
BATCH = 64  # images; bounds the memory of a run to some 100 MB at 128 px


class DetectorError(DedupError):
    """A file is not a usable copy detector; the message says why."""


@dataclass(frozen=True)
class Card:
    """The settings in a model's metadata (`wit.side`, `wit.sure`, `wit.propose` and, if it is there, `wit.loose`)."""

    side: int  # pixels of the input's squares
    dimensions: int
    sure: float  # cosine from which two images count as copies without verification on their pixels
    propose: float  # cosine from which a pair is a candidate for verification: one pair of strangers in 100,000
    loose: float  # the same in sets of up to `_FEW_IMAGES`: one pair of strangers in 1,000; default: `propose`


@dataclass(frozen=True)
class Detector:
    """A model ready to run; make one with `load`. It pickles as its file's bytes."""

    model: bytes
    card: Card

    @classmethod
    def load(cls, path: Path) -> Self:
        """Open a model.

        Raises:
            DetectorError: no such file, not ONNX, other inputs and outputs, or metadata missing.
        """
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DetectorError(f"cannot read the copy detector {path}: {error.strerror}") from error
        try:
            return cls(model, _card(_session(model)))
        except DetectorError as error:
            raise DetectorError(f"{path} is not a copy detector: {error}") from None

    @cached_property
    def sha256(self) -> str:
        """Return the hash of the model file, which names the detector in indexes and manifests."""
        return hashlib.sha256(self.model).hexdigest()

    @property
    def scale(self) -> float:
        """Return the factor from unit vectors to int8: the root mean square is then 16, and few entries are clipped."""
        return 16.0 * self.card.dimensions**0.5

    @cached_property
    def _running(self) -> Any:
        return _session(self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "card": self.card}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def square(self, image: np.ndarray) -> np.ndarray:
        """Resize an RGB image to the model's square input, without keeping the aspect ratio."""
        side = self.card.side
        if image.shape[:2] == (side, side):
            return np.ascontiguousarray(image)
        smaller = image.shape[0] * image.shape[1] > side * side
        way = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return cv2.resize(np.ascontiguousarray(image), (side, side), interpolation=way)

    def describe(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return `(n, dimensions)` int8 vectors of RGB images of any size."""
        if not images:
            return np.empty((0, self.card.dimensions), np.int8)
        squares = np.stack([self.square(image) for image in images])
        batches = [
            self._running.run(None, {_INPUT: squares[at : at + BATCH]})[0] for at in range(0, len(squares), BATCH)
        ]
        vectors = np.nan_to_num(np.concatenate(batches)) * np.float32(self.scale)
        return np.clip(np.rint(vectors), -127, 127).astype(np.int8)

    def propose_in(self, images: int) -> float:
        """Return the cosine from which pairs with a set of so many images are candidates.

        At most one stranger a web image is then verified, up to `_MANY_IMAGES`; between the two measured cosines it
        is interpolated over the logarithm of the set's size.
        """
        span = math.log(_MANY_IMAGES / _FEW_IMAGES)
        share = min(1.0, max(0.0, math.log(_MANY_IMAGES / max(1, images)) / span))
        return self.card.propose - share * (self.card.propose - self.card.loose)

    def score(self, cosine: float) -> int:
        """Convert a cosine to the integer scale of `scores`."""
        return round(cosine * self.scale**2)

    def cosine(self, score: int) -> float:
        """Convert a score to a cosine."""
        return score / self.scale**2


_INPUT = "pictures"


def packaged_detector() -> Path:
    """Return the path of the detector included in the package; docs/copies.md describes how it was trained."""
    return Path(__file__).with_name("copy.onnx")


def scores(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the dot products of int8 vectors, `(len(a), len(b))` int32.

    They are computed in float32 for its speed, and are exact: 127 x 127 x 1,024 dimensions stays below 2^24.
    """
    return (a.astype(np.float32, copy=False) @ b.astype(np.float32, copy=False).T).astype(np.int32)


def _session(model: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the pipeline runs one process per core
    options.inter_op_num_threads = 1
    # Another level fuses other operations and changes the last bits of a vector.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other base
        raise DetectorError(f"onnxruntime cannot open it ({str(error).splitlines()[0]})") from None


def _card(session: Any) -> Card:
    metadata = session.get_modelmeta().custom_metadata_map
    (given, *more), (output, *others) = session.get_inputs(), session.get_outputs()
    if more or others or given.type != "tensor(uint8)" or given.name != _INPUT or output.type != "tensor(float)":
        raise DetectorError(f"it must have one uint8 input named {_INPUT!r} and one float output")
    try:
        side, sure, propose = (json.loads(metadata[f"wit.{key}"]) for key in ("side", "sure", "propose"))
        loose = json.loads(metadata.get("wit.loose", metadata["wit.propose"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise DetectorError(f"its metadata lacks wit.side, wit.sure or wit.propose ({error})") from None
    if not all(type(number) in (int, float) for number in (side, sure, propose, loose)) or type(side) is not int:
        raise DetectorError("its metadata wit.side, wit.sure, wit.propose and wit.loose must be numbers")
    if not -1 <= loose <= propose <= sure:
        raise DetectorError(f"wit.loose ({loose}), wit.propose ({propose}) and wit.sure ({sure}) must rise")
    sides = given.shape[1:3]
    if (len(given.shape), *given.shape[3:], len(output.shape)) != (4, 3, 2) or any(
        isinstance(length, int) and length != side for length in sides
    ):
        raise DetectorError(
            f"the shapes of its input {given.shape} and output {output.shape} do not fit images of {side} pixels"
        )
    dimensions = output.shape[1]
    if not isinstance(dimensions, int) or dimensions % 64 or not 64 <= dimensions <= 1024:
        raise DetectorError(
            f"its vectors have {dimensions} dimensions; the number must be a multiple of 64 up to 1,024"
        )
    return Card(side, dimensions, sure, propose, loose)
