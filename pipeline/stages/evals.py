"""Evaluation sets -> evals/<name>/: fingerprints and thumbnails, computed once per set by dedup/eval_sets/index.py."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from dedup.captions import CAPTION_OVERLAP, CaptionIndex, find_caption_overlap
from dedup.copies.detector import Detector
from dedup.copies.match import Copy
from dedup.copies.verify import MIN_PROBABILITY
from dedup.errors import DedupError
from dedup.eval_sets import threshold_bits, threshold_probability
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.index import index_eval_set
from dedup.hamming import HammingIndex
from dedup.overlap import EvalIndex, find_overlap
from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Stateless, Unit, UnitOutput, digest
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.paths import resolve_path
from pipeline.private_folder import scratch_folder
from pipeline.sources import file_versions

VERSION = 8
"""Raise it when the same images would give another index."""


@dataclass(frozen=True)
class _Set:
    config: EvalSetConfig
    path: str


@dataclass(frozen=True)
class LoadedEval:
    """An evaluation set in memory, ready to be searched."""

    name: str
    max_distance_bits: int
    index: EvalIndex
    captions: CaptionIndex | None = None

    def find(self, images: pa.Table, min_quality: int, copies: Sequence[Copy]) -> pa.Table:
        """Return the set's overlap rows of images, such as those of a fetched part; see `dedup.overlap.find_overlap`.

        `copies` are those that the copy detector found among the images.
        """
        bits = self.max_distance_bits
        return find_overlap(images, self.index, max_distance_bits=bits, min_quality=min_quality, copies=copies)

    def find_captions(self, pairs: pa.Table) -> pa.Table:
        """Return the rows of pairs (uid, caption) whose captions are the set's, if it has any: `CAPTION_OVERLAP`."""
        return find_caption_overlap(pairs, self.captions) if self.captions else CAPTION_OVERLAP.empty_table()


@dataclass(frozen=True)
class EvalIndexes:
    """The indexed sets of a build, by name, with the maximum distance of a match."""

    distances_bits: Mapping[str, int]
    sha256: Mapping[str, str]  # of each file of the sets
    digest: str
    images: Mapping[str, int]  # readable examples, by set
    folder: str = "evals"
    probabilities: Mapping[str, float] = field(default_factory=dict)  # other minimums than MIN_PROBABILITY, by set

    @property
    def names(self) -> list[str]:
        return list(self.distances_bits)

    def digest_of(self, name: str) -> str:
        """Return the digest of what decides about matches of one set."""
        files = sorted(item for item in self.sha256.items() if item[0].startswith(f"{self.folder}/{name}/"))
        return digest(files, self.distances_bits[name], self.probabilities.get(name))

    def load_one(self, workspace: Workspace, name: str, hashes: HammingIndex | None) -> LoadedEval:
        """Read the index of a set, on a worker; its hashes are read too, if they are not mapped already."""
        columns = ["eval_id", "reason", "sha256", "quality", *([] if hashes else ["views"])]
        index = EvalIndex.load(self._read(workspace, name, "index", columns), hashes)
        captions = CaptionIndex.build(self._read(workspace, name, "captions")) if self.has_captions(name) else None
        return LoadedEval(name, self.distances_bits[name], index, captions)

    def min_probability(self, name: str) -> float:
        """Return the probability from which an aligned image is a copy of a set's example."""
        return self.probabilities.get(name, MIN_PROBABILITY)

    def has_captions(self, name: str) -> bool:
        """Return whether a set has captions to compare with."""
        return f"{self.folder}/{name}/captions.parquet" in self.sha256

    def _read(self, workspace: Workspace, name: str, table: str, columns: list[str] | None = None) -> pa.Table:
        file = f"{self.folder}/{name}/{table}.parquet"
        return workspace.read_table(file, columns, sha256=self.sha256[file])


def run_evals(build: Build, config: Config, base_dir: Path, detector: Detector | None = None) -> EvalIndexes:
    """Fill evals/ with one folder per configured set."""
    if not config.evals:
        return EvalIndexes({}, {}, digest(), {})
    units = [_unit(e, base_dir, detector) for e in config.evals]
    markers = run_units(build, "evals", units, Stateless(_IndexSet(detector)))
    hashes = {name: f.sha256 for m in markers.values() for name, f in m.outputs.items()}
    bits = {e.name: max_distance_bits(config, e) for e in config.evals}
    probabilities = {e.name: min_probability(e) for e in config.evals} if detector else {}
    images = {name: marker.counts["kept"] for name, marker in markers.items()}
    contents = digest(sorted(hashes.items()), bits, probabilities)
    return EvalIndexes(bits, hashes, contents, images, probabilities=probabilities)


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
