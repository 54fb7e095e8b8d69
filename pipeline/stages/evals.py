"""Evaluation sets -> evals/<name>/: fingerprints and thumbnails, computed once per set by dedup/eval_sets/index.py."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from dedup.captions import CAPTION_OVERLAP, CaptionIndex, find_caption_overlap
from dedup.copies.detector import Detector
from dedup.copies.match import Copy, CopyFinder, Described, find_copies
from dedup.copies.search import VectorIndex
from dedup.copies.verify import MIN_PROBABILITY
from dedup.copies.views import VIEWS
from dedup.decode import decode_rgb
from dedup.errors import DedupError
from dedup.eval_sets import threshold_bits, threshold_probability
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.index import index_eval_set, read_vectors
from dedup.overlap import EvalIndex, find_overlap
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Stateless, Unit, UnitOutput, digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.paths import resolve_path
from pipeline.private_folder import scratch_folder
from pipeline.sources import file_versions

VERSION = 6
"""Raise it when the same images would give another index."""


@dataclass(frozen=True)
class _Set:
    config: EvalSetConfig
    path: str


class DescribedImages(Protocol):
    """Images with their vectors, and their pixels where they are needed."""

    @property
    def described(self) -> Described: ...

    def pixels(self, number: int) -> np.ndarray:
        """Return the pixels of an image."""
        ...


@dataclass(frozen=True)
class LoadedEval:
    """An evaluation set in memory, ready to be searched."""

    name: str
    max_distance_bits: int
    index: EvalIndex
    copies: CopyFinder | None
    captions: CaptionIndex | None = None

    def find_captions(self, pairs: pa.Table) -> pa.Table:
        """Return the rows of pairs (uid, caption) whose captions are the set's, if it has any: `CAPTION_OVERLAP`."""
        return find_caption_overlap(pairs, self.captions) if self.captions else CAPTION_OVERLAP.empty_table()


def find_overlaps(
    sets: Mapping[str, LoadedEval], images: pa.Table, min_quality: int, part: DescribedImages | None
) -> dict[str, pa.Table]:
    """Return each set's overlap rows of images, such as those of a fetched part; see `dedup.overlap.find_overlap`.

    `part` has the vectors of the same images; None without a copy detector.
    """
    copies: list[list[Copy]] = [[] for _ in sets]
    if part:
        copies = find_copies([one.copies for one in sets.values()], part.described, part.pixels)
    return {
        name: find_overlap(
            images,
            one.index,
            max_distance_bits=one.max_distance_bits,
            min_quality=min_quality,
            copies=found,
        )
        for (name, one), found in zip(sets.items(), copies, strict=True)
    }


@dataclass(frozen=True)
class EvalIndexes:
    """The indexed sets of a build, by name, with the maximum distance of a match."""

    distances_bits: Mapping[str, int]
    sha256: Mapping[str, str]  # of each file of the sets
    digest: str
    detector: Detector | None = None
    folder: str = "evals"
    probabilities: Mapping[str, float] = field(default_factory=dict)  # other minimums than MIN_PROBABILITY, by set

    @property
    def names(self) -> list[str]:
        return list(self.distances_bits)

    def load(self, workspace: Workspace) -> list[LoadedEval]:
        """Read the indexes, on a worker."""
        return [self.load_one(workspace, name) for name in self.names]

    def load_one(self, workspace: Workspace, name: str) -> LoadedEval:
        """Read the index of a set, on a worker."""
        index = EvalIndex.load(self._read(workspace, name, "index"))
        copies = self._copy_finder(workspace, name, self.detector) if self.detector else None
        captions = CaptionIndex.build(self._read(workspace, name, "captions")) if self.has_captions(name) else None
        return LoadedEval(name, self.distances_bits[name], index, copies, captions)

    def has_captions(self, name: str) -> bool:
        """Return whether a set has captions to compare with."""
        return f"{self.folder}/{name}/captions.parquet" in self.sha256

    def _copy_finder(self, workspace: Workspace, name: str, detector: Detector) -> CopyFinder:
        rows = read_vectors(self._read(workspace, name, "vectors"), detector)
        thumbnails = self._read(workspace, name, "thumbnails")["jpeg"]
        index = VectorIndex.build(rows, len(VIEWS))
        least = self.probabilities.get(name, MIN_PROBABILITY)
        return CopyFinder(detector, index, lambda row: decode_rgb(thumbnails[row].as_py()), least)

    def _read(self, workspace: Workspace, name: str, table: str) -> pa.Table:
        file = f"{self.folder}/{name}/{table}.parquet"
        return workspace.read_table(file, sha256=self.sha256[file])


def run_evals(build: Build, config: Config, base_dir: Path, detector: Detector | None = None) -> EvalIndexes:
    """Fill evals/ with one folder per configured set."""
    if not config.evals:
        return EvalIndexes({}, {}, digest())
    units = [_unit(e, base_dir, detector) for e in config.evals]
    markers = run_units(build, "evals", units, Stateless(_IndexSet(detector)))
    hashes = {name: f.sha256 for m in markers.values() for name, f in m.outputs.items()}
    bits = {e.name: max_distance_bits(config, e) for e in config.evals}
    probabilities = {e.name: min_probability(e) for e in config.evals} if detector else {}
    contents = digest(sorted(hashes.items()), bits, probabilities)
    return EvalIndexes(bits, hashes, contents, detector, probabilities=probabilities)


def max_distance_bits(config: Config, evaluation: EvalSetConfig) -> int:
    """Return the maximum distance of a match: the set's own key, else the general one or a stricter registered one."""
    if evaluation.max_distance_bits is not None:
        return evaluation.max_distance_bits
    return threshold_bits(evaluation.name, config.dedup.eval_max_distance_bits)


def min_probability(evaluation: EvalSetConfig) -> float:
    """Return the probability from which an aligned image is a copy: the set's own key, else the registry's."""
    if evaluation.min_probability is not None:
        return evaluation.min_probability
    return threshold_probability(evaluation.name, MIN_PROBABILITY)


def _unit(evaluation: EvalSetConfig, base_dir: Path, detector: Detector | None) -> Unit:
    path = resolve_path(evaluation.path, base_dir)
    unit_digest = digest(
        VERSION,
        evaluation.model_dump(exclude={"path", "max_distance_bits", "min_probability"}),
        file_versions(path),
        detector and detector.sha256,
    )
    return Unit(evaluation.name, unit_digest, _Set(evaluation, path))


@dataclass(frozen=True)
class _IndexSet:
    detector: Detector | None

    def run(self, task: _Set, output: UnitOutput) -> Mapping[str, int]:
        config = task.config
        with scratch_folder("evals") as scratch:
            try:
                summary = index_eval_set(
                    config.name,
                    config.kind,
                    task.path,
                    Path(scratch),
                    image_column=config.image,
                    label_column=config.label,
                    caption_column=config.caption,
                    detector=self.detector,
                )
            except (FileNotFoundError, DedupError) as error:
                raise UserError(f"evals: {config.name}: {error}") from error
            for file in sorted((Path(scratch) / config.name).rglob("*")):
                if file.is_file():
                    name = f"evals/{config.name}/{file.relative_to(Path(scratch) / config.name)}"
                    output.files[name] = output.workspace.upload(file, name)
        return summary.counts()
