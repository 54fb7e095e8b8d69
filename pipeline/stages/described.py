"""fetched/ -> described/: the copy detector's vectors of every fetched image, computed once per image and detector.

A unit is a fetched part. With another detector the images are described again, but not fetched again. Vectors are int8,
and all later steps use integers: given described/, all machines find the same copies.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from dedup.copies.boxes import Box
from dedup.copies.detector import Detector, DetectorError, packaged_detector
from dedup.copies.match import Described
from dedup.decode import decode_rgb
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError

VERSION = 2
"""Raised when the same images and detector would give other vectors."""

DESCRIBED = pa.schema(
    [
        ("uid", pa.string()),
        ("vector", pa.binary()),  # int8, of the whole image
        ("boxes", pa.list_(pa.int32())),  # left, top, right, bottom of each picture inside, one after another
        ("inner", pa.binary()),  # int8, of these pictures, one after another
    ]
)

_BATCH = 64  # images in memory at a time
_BATCH_BYTES = 1 << 28  # of their pixels, and one image more


def load_detector(config: Config, base_dir: Path) -> Detector | None:
    """Return the detector of edited copies that `dedup.detector` names; None for "pdq".

    Raises:
        ConfigError: it is not a detector.
    """
    name = config.dedup.detector
    if name == "pdq":
        return None
    try:
        return Detector.load(packaged_detector() if name == "copy" else base_dir / name)
    except DetectorError as error:
        raise ConfigError(f"dedup.detector = {name!r}: {error}") from None


def run_described(build: Build, detector: Detector, fetched: Mapping[str, Marker]) -> None:
    """Fill described/ with one table for each fetched part."""
    units = [
        Unit(name, digest(VERSION, detector.sha256, marker.outputs[f"fetched/{name}.tar"].sha256), name)
        for name, marker in fetched.items()
    ]
    run_units(build, "described", units, Stateless(_Describe(detector)))


@dataclass(frozen=True)
class _Describe:
    detector: Detector

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        count = 0
        with output.workspace.open(f"fetched/{name}.tar") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            tables = []
            for uids, images in _batches(tar):
                count += len(uids)
                tables.append(_table(uids, Described.of(self.detector, images)))
        output.write_batches(f"described/{name}.parquet", DESCRIBED, tables or [DESCRIBED.empty_table()])
        return {"inputs": count, "kept": count}


def _batches(tar: tarfile.TarFile) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    uids, images = list[str](), list[np.ndarray]()
    for member in tar:
        image = tar.extractfile(member)
        assert image is not None
        uids.append(member.name.partition(".")[0])
        images.append(decode_rgb(image.read()))
        if len(uids) == _BATCH or sum(one.size for one in images) > _BATCH_BYTES:
            yield uids, images
            uids, images = [], []
    if uids:
        yield uids, images


def _table(uids: list[str], described: Described) -> pa.Table:
    boxes: list[list[int]] = [[] for _ in uids]
    inner = [b""] * len(uids)
    for (number, box), vector in zip(described.boxes, described.inner, strict=True):
        boxes[number] += box
        inner[number] += vector.tobytes()
    return pa.table([uids, [vector.tobytes() for vector in described.whole], boxes, inner], DESCRIBED)


@dataclass(frozen=True)
class DescribedPart:
    """The images of a fetched part, with their vectors, and their pixels where they are needed."""

    described: Described
    uids: list[str]  # by number
    tar: tarfile.TarFile
    members: Mapping[str, tarfile.TarInfo]  # by uid

    @classmethod
    def read(cls, workspace: Workspace, name: str, uids: list[str], tar: tarfile.TarFile, dimensions: int) -> Self:
        """Read the part in the order of `uids`; an image of several pairs has a row for each uid."""
        table = workspace.read_table(f"described/{name}.parquet")
        place = {uid: row for row, uid in enumerate(table["uid"].to_pylist())}
        rows = table.take(pa.array([place[uid] for uid in uids], pa.int64())).to_pylist()
        boxes = [
            (number, Box(*row["boxes"][at : at + 4]))
            for number, row in enumerate(rows)
            for at in range(0, len(row["boxes"]), 4)
        ]
        whole = _matrix([row["vector"] for row in rows], dimensions)
        inner = _matrix([row["inner"] for row in rows], dimensions)
        members = {member.name.partition(".")[0]: member for member in tar}
        return cls(Described(whole, boxes, inner), uids, tar, members)

    def pixels(self, number: int) -> np.ndarray:
        """Return the pixels of an image."""
        image = self.tar.extractfile(self.members[self.uids[number]])
        assert image is not None
        return decode_rgb(image.read())


def _matrix(vectors: list[bytes], dimensions: int) -> np.ndarray:
    return np.frombuffer(b"".join(vectors), np.int8).reshape(-1, dimensions)
