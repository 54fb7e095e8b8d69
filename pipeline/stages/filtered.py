"""fetched/ -> filtered/: which images pass the filters that look at them, and how well each fits its caption.

    scored/     fetched part -> of each image, why it is dropped or null, and its score: what is expensive
    filtered/   fetched part -> its rows again, those that are dropped with a reason, and a column `score`

A change of `scores.min` or `scores.keep_fraction` redoes only the second. Nothing is written, and later stages read
fetched/, where no filter on images and no score is configured. A unit is a part.
"""

import importlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dedup.decode import decode_rgb
from pipeline.config import Config
from pipeline.config.filters import ScoresConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, Work, digest, discard_stale
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError
from pipeline.filters.images import is_single_colour
from pipeline.filters.python_rules import Rule, load_rule, rule_reasons, rule_version
from pipeline.filters.text import REASON
from pipeline.filters.threshold import threshold_of_best
from pipeline.paths import resolve_path
from pipeline.records import DROPPED, FETCHED, SCORE, Reason

VERSION = 1
"""Raise it when the same images would be filtered or scored otherwise."""

_SCORED = pa.schema([("uid", pa.string()), ("reason", pa.string()), SCORE])
_BATCH = 64  # images in memory at a time, decoded
_BATCH_PIXELS = 1 << 26  # and one image more
_SCORER = "trainer.scoring:open_scorer"  # by name: only the trainer imports torch


class Scorer(Protocol):
    """What `trainer.scoring` gives."""

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> np.ndarray:
        """Return the score of each pair, (n,) float32, finite."""


@dataclass(frozen=True)
class ImageFilters:
    """What a worker needs to filter and score images; it pickles. `version` is "" where nothing is on."""

    single_colour: bool
    calls: tuple[str, ...]
    scores: ScoresConfig | None
    base_dir: str
    version: str

    @classmethod
    def of(cls, config: Config, base_dir: Path) -> "ImageFilters":
        """Find the functions and the checkpoint.

        Raises:
            ConfigError: one is not there, or the trainer is not installed.
        """
        filters, scores = config.filters, config.scores
        calls = filters.python_on("images")
        decides: list[Any] = [filters.single_colour, [rule_version(call, str(base_dir)) for call in calls]]
        if scores is not None:
            scores = scores.model_copy(update={"checkpoint": resolve_path(scores.checkpoint, base_dir)})
            _open_scorer_function()
            decides += [_checkpoint_sha256(scores.checkpoint), scores.architecture]
        is_on = filters.single_colour or calls or scores is not None
        return cls(filters.single_colour, calls, scores, str(base_dir), digest(VERSION, decides) if is_on else "")

    def open(self) -> Work:
        scorer = None if self.scores is None else open_scorer(self.scores)
        rules = tuple((load_rule(call, self.base_dir), call) for call in self.calls)
        return _ScoreImages(self.single_colour, rules, scorer)


def open_scorer(scores: ScoresConfig) -> Scorer:
    """Open the model that scores pairs."""
    return cast(Scorer, _open_scorer_function()(scores.model_dump()))


def _open_scorer_function() -> Rule:
    module, _, name = _SCORER.partition(":")
    try:
        return cast(Rule, getattr(importlib.import_module(module), name))
    except ImportError as error:
        raise ConfigError(
            f"scores: needs {error.name}: run pip install '.[train]' in the project's folder, on all workers"
        ) from None


def _checkpoint_sha256(path: str) -> list[list[str]]:
    """Return the names and hashes of a checkpoint's files; of one of open_clip's tags, which is no file, its name."""
    whole = Path(path)
    files = sorted(file for file in whole.rglob("*") if file.is_file()) if whole.is_dir() else [whole]
    if not files or not whole.exists():
        raise ConfigError(f"scores.checkpoint = {path!r}: no such file or folder")
    found = []
    for file in files:
        with file.open("rb") as stream:
            hashed = sha256()
            while block := stream.read(1 << 20):
                hashed.update(block)
        found.append([file.name, hashed.hexdigest()])
    return found


def run_filtered(build: Build, config: Config, base_dir: Path, fetched: Mapping[str, Marker]) -> dict[str, Marker]:
    """Fill scored/ and filtered/; return the markers of filtered/ by part name, empty where nothing is on."""
    filters = ImageFilters.of(config, base_dir)
    if not filters.version:
        for step in ("filtered", "scored"):
            discard_stale(build.workspace, step, [])
        return {}
    inputs = {
        name: [marker.outputs[f"fetched/{name}.{kind}"].sha256 for kind in ("tar", "parquet")]
        for name, marker in fetched.items()
    }
    units = [Unit(name, digest(filters.version, inputs[name]), name) for name in fetched]
    scored = run_units(build, "scored", units, filters)
    least = _least_score(build.workspace, config.scores, list(scored))
    units = [
        Unit(name, digest(VERSION, marker.outputs[f"scored/{name}.parquet"].sha256, inputs[name], least), name)
        for name, marker in scored.items()
    ]
    return run_units(build, "filtered", units, Stateless(_WriteFiltered(least, config.scores is not None)))


def _least_score(workspace: Workspace, config: ScoresConfig | None, parts: Sequence[str]) -> float | None:
    """Return the score that a pair must reach."""
    if config is None or config.keep_fraction is None:
        return None if config is None else config.min

    def read() -> Iterator[np.ndarray]:
        for name in parts:
            rows = workspace.read_table(f"scored/{name}.parquet", ["reason", "score"])
            yield rows["score"].filter(pc.is_null(rows["reason"])).to_numpy().astype(np.float32)

    return max(threshold_of_best(read, config.keep_fraction), -3.4e38 if config.min is None else config.min)


@dataclass(frozen=True)
class _ScoreImages:
    single_colour: bool
    rules: Sequence[tuple[Rule, str]]
    scorer: Scorer | None

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        rows = output.workspace.read_table(f"fetched/{name}.parquet")
        rows = rows.filter(pc.is_null(rows["reason"])).combine_chunks()
        place = {uid: row for row, uid in enumerate(rows["uid"].to_pylist())}
        pixels = dict(zip(place, pc.multiply(rows["width"], rows["height"]).to_pylist(), strict=True))
        tables = [_SCORED.empty_table()]
        with output.workspace.open(f"fetched/{name}.tar") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for uids, images in _batches(tar, pixels):
                batch = rows.take(pa.array([place[uid] for uid in uids])).combine_chunks().to_batches()[0]
                tables.append(self._judge(batch, images))
        output.write_table(f"scored/{name}.parquet", pa.concat_tables(tables))
        return {"inputs": rows.num_rows, "kept": rows.num_rows}

    def _judge(self, batch: pa.RecordBatch, images: list[bytes]) -> pa.Table:
        reasons = np.full(len(images), "", REASON)
        if self.single_colour or self.rules:
            pixels = [decode_rgb(image) for image in images]
            if self.single_colour:
                reasons[[is_single_colour(rgb) for rgb in pixels]] = Reason.SINGLE_COLOUR
            for rule, call in self.rules:
                left = np.flatnonzero(reasons == "")
                reasons[left] = rule_reasons(rule, call, [batch.take(pa.array(left)), [pixels[i] for i in left]])
        scores = np.full(len(images), np.nan, np.float32)
        left = np.flatnonzero(reasons == "")
        if self.scorer is not None and len(left):
            captions = batch.column("caption").take(pa.array(left)).to_pylist()
            scores[left] = self.scorer.score([images[i] for i in left], captions)
        columns = [
            batch.column("uid"),
            pa.array([reason or None for reason in reasons.tolist()], pa.string()),
            pa.array(scores, from_pandas=True),
        ]
        return pa.table(columns, _SCORED)


def _batches(tar: tarfile.TarFile, pixels: Mapping[str, int]) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield the images of a tar with their uids, some at a time; `pixels` are those of each image."""
    uids, images = list[str](), list[bytes]()
    for member in tar:
        image = tar.extractfile(member)
        assert image is not None
        uids.append(member.name.partition(".")[0])
        images.append(image.read())
        if len(uids) == _BATCH or sum(pixels[uid] for uid in uids) > _BATCH_PIXELS:
            yield uids, images
            uids, images = [], []
    if uids:
        yield uids, images


@dataclass(frozen=True)
class _WriteFiltered:
    least_score: float | None
    has_scores: bool

    def run(self, name: str, output: UnitOutput) -> Mapping[str, int]:
        rows = output.workspace.read_table(f"fetched/{name}.parquet")
        scored = output.workspace.read_table(f"scored/{name}.parquet")
        found = scored.take(pc.index_in(rows["uid"], scored["uid"]))  # nulls where the fetch failed
        reasons = found["reason"]
        if self.least_score is not None:
            is_low = pc.and_(pc.is_null(reasons), pc.less(found["score"], pa.scalar(self.least_score, pa.float32())))
            reasons = pc.if_else(pc.fill_null(is_low, False), Reason.LOW_SCORE.value, reasons)
        fetched = pc.is_null(rows["reason"])
        dropped = pc.and_(fetched, pc.is_valid(reasons))
        columns = dict(zip(rows.column_names, rows.columns, strict=True)) | {
            "status": pc.if_else(dropped, DROPPED, rows["status"]),
            "reason": pc.coalesce(rows["reason"], reasons),
        }
        table = pa.table([columns[column] for column in FETCHED.names], FETCHED)
        if self.has_scores:
            table = table.append_column(SCORE, found["score"])
        output.write_table(f"filtered/{name}.parquet", table)
        counts = Counter(reasons.filter(dropped).to_pylist())
        images = pc.sum(fetched).as_py() or 0
        return counts + Counter(inputs=images, kept=images - counts.total())
