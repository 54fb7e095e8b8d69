"""Evaluation sets -> evals/<name>/: fingerprints and thumbnails, made once per set by dedup/eval_sets/index.py."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dedup.errors import DedupError
from dedup.eval_sets import threshold_bits
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.index import index_eval_set
from dedup.overlap import EvalIndex, find_overlap
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Stateless, Unit, UnitOutput, digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.sources import file_versions

VERSION = 3
"""Raised when the same images would give another index."""


@dataclass(frozen=True)
class _Set:
    config: EvalSetConfig
    path: str


@dataclass(frozen=True)
class LoadedEval:
    """An evaluation set ready to be compared with."""

    name: str
    max_distance_bits: int
    index: EvalIndex

    def find(self, images: pa.Table, min_quality: int) -> pa.Table:
        """Return the overlap rows of some fetched images; see `dedup.overlap.find_overlap`."""
        return find_overlap(images, self.index, max_distance_bits=self.max_distance_bits, min_quality=min_quality)


@dataclass(frozen=True)
class EvalIndexes:
    """The indexed sets of a build: name -> the distance up to which an image matches."""

    distances_bits: Mapping[str, int]
    digest: str

    @property
    def names(self) -> list[str]:
        return list(self.distances_bits)

    def load(self, workspace: Workspace) -> list[LoadedEval]:
        """Read the indexes, on a worker."""
        return [
            LoadedEval(name, bits, EvalIndex.load(workspace.read_table(f"evals/{name}/index.parquet")))
            for name, bits in self.distances_bits.items()
        ]


def run_evals(build: Build, config: Config, base_dir: Path) -> EvalIndexes:
    """Fill evals/ with one folder per configured set."""
    if not config.evals:
        return EvalIndexes({}, digest())
    units = [_unit(e, base_dir) for e in config.evals]
    markers = run_units(build, "evals", units, Stateless(_IndexSet()))
    content = sorted((name, f.sha256) for m in markers.values() for name, f in m.outputs.items())
    bits = {e.name: max_distance_bits(config, e) for e in config.evals}
    return EvalIndexes(bits, digest(content, bits))


def max_distance_bits(config: Config, evaluation: EvalSetConfig) -> int:
    """Return up to which distance an image matches a set: its own key, else the general or a stricter known one."""
    if evaluation.max_distance_bits is not None:
        return evaluation.max_distance_bits
    return threshold_bits(evaluation.name, config.dedup.eval_max_distance_bits)


def _unit(evaluation: EvalSetConfig, base_dir: Path) -> Unit:
    path = evaluation.path if "://" in evaluation.path else str(base_dir / evaluation.path)
    unit_digest = digest(VERSION, evaluation.model_dump(exclude={"path", "max_distance_bits"}), file_versions(path))
    return Unit(evaluation.name, unit_digest, _Set(evaluation, path))


@dataclass(frozen=True)
class _IndexSet:
    def run(self, task: _Set, output: UnitOutput) -> Mapping[str, int]:
        config = task.config
        with tempfile.TemporaryDirectory(prefix="wit-evals-") as scratch:
            try:
                summary = index_eval_set(
                    config.name,
                    config.kind,
                    task.path,
                    Path(scratch),
                    image_column=config.image,
                    label_column=config.label,
                )
            except (FileNotFoundError, DedupError) as error:
                raise UserError(f"evals: {config.name}: {error}") from error
            for file in sorted((Path(scratch) / config.name).rglob("*")):
                if file.is_file():
                    name = f"evals/{config.name}/{file.relative_to(Path(scratch) / config.name)}"
                    output.files[name] = output.workspace.upload(file, name)
        return summary.counts()
