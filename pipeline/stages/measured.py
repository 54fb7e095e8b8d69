"""Evaluation sets -> measured/<name>.parquet: how many planted edits of a set's own images the comparison finds.

Some examples are edited in every way of `dedup.copies.edits` and go through the same steps as fetched images: decode,
fingerprint, describe, search, verify. The report corrects its fractions by the recall.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dedup.copies.match import Described
from dedup.decode import decode_rgb
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.read import read_examples
from dedup.measure import PLANTED, measure_recall, spread_pictures
from dedup.pdq import fingerprint
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Unit, UnitOutput, Work, digest
from pipeline.engine.workspace import Workspace
from pipeline.paths import resolve_path
from pipeline.sources import file_versions
from pipeline.stages.evals import LoadedEval
from pipeline.stages.lookup import Lookup, OpenLookup

VERSION = 4
"""Raise it when the same set would give other counts."""


def run_measured(build: Build, config: Config, base_dir: Path, lookup: Lookup) -> Mapping[str, Marker]:
    """Fill measured/ with one table for each set; nothing if `dedup.planted` is 0."""
    if not config.dedup.planted:
        return {}
    recipe = config.dedup.model_dump(include={"planted", "min_quality"})
    units = []
    for evaluation in config.evals:
        path = resolve_path(evaluation.path, base_dir)
        unit_digest = digest(VERSION, lookup.digest_of(evaluation.name), recipe, file_versions(path))
        units.append(Unit(evaluation.name, unit_digest, _Set(evaluation, path)))
    prepare = _OpenMeasure(build.workspace.root, lookup, config.dedup.planted, config.dedup.min_quality)
    return run_units(build, "measured", units, prepare)


@dataclass(frozen=True)
class _Set:
    config: EvalSetConfig
    path: str


@dataclass(frozen=True)
class _OpenMeasure:
    root: str
    lookup: Lookup
    planted: int
    min_quality: int

    def open(self) -> Work:
        return _Measure(self.lookup.open(Workspace(self.root)), self.planted, self.min_quality)


@dataclass(frozen=True)
class _Measure:
    lookup: OpenLookup
    planted: int
    min_quality: int

    def run(self, task: _Set, output: UnitOutput) -> Mapping[str, int]:
        config = task.config
        loaded = self.lookup.load(config.name)
        examples = read_examples(config.kind, task.path, image_column=config.image, label_column=config.label)
        pictures = spread_pictures(examples, len(loaded.index), self.planted)
        recall = measure_recall(lambda planted: self._find(loaded, planted), pictures)
        table = recall.table() if pictures else PLANTED.empty_table()
        output.write_table(f"measured/{config.name}.parquet", table)
        return {"inputs": len(pictures), "kept": len(pictures)}

    def _find(self, loaded: LoadedEval, planted: list[tuple[str, bytes]]) -> pa.Table:
        pictures = [decode_rgb(file) for _, file in planted]
        looks = [fingerprint(picture) for picture in pictures]
        images = pa.table(
            {
                "uid": pa.array([name for name, _ in planted], pa.string()),
                "pdq": pa.array([look.pdq for look in looks], pa.binary(32)),
                "pdq_quality": pa.array([look.quality for look in looks], pa.int32()),
                "sha256": pa.array([hashlib.sha256(file).hexdigest() for _, file in planted], pa.string()),
            }
        )
        detector = self.lookup.lookup.detector
        described = _Pictures(Described.of(detector, pictures), pictures) if detector else None
        return self.lookup.find({loaded.name: loaded}, images, self.min_quality, described)[loaded.name]


@dataclass(frozen=True)
class _Pictures:
    """Planted images, as `DescribedPart` has fetched ones."""

    described: Described
    pictures: list[np.ndarray]

    def pixels(self, number: int) -> np.ndarray:
        """Return the pixels of an image."""
        return self.pictures[number]
