"""Find which images of one set another set contains: the overlap report for any two sets, without a crawl.

<out>/index/<name>/...    the index of the first set (dedup/eval_sets/index.py)
<out>/index.html, overlap.json, measured.json, and the tables and lists of dedup/published.py
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dedup.control import CONTROL_IMAGES, CONTROL_SET, Control, control_table, index_control
from dedup.copies.detector import Detector
from dedup.copies.match import Copy, CopyFinder, Described, KnownSet
from dedup.copies.search import VectorIndex
from dedup.copies.verify import MIN_PROBABILITY
from dedup.copies.views import VIEWS
from dedup.decode import ImageDecodeError, decode_rgb
from dedup.errors import DedupError
from dedup.eval_sets.index import (
    EvalSummary,
    Thumbnails,
    index_eval_set,
    outline,
    read_thumbnails,
    read_vectors,
    thumbnail,
)
from dedup.eval_sets.layout import Source
from dedup.eval_sets.read import as_text
from dedup.measure import PLANTED, Recall, measure_recall, spread_pictures
from dedup.overlap import OVERLAP, EvalIndex, find_overlap, pick_evidence
from dedup.pdq import fingerprint
from dedup.published import Published, derive, write_published
from dedup.report import write_report
from dedup.report_data import EvalReport, Evidence, ReportData
from dedup.reviews import Reviews

_BATCH = 64  # images of the second set in memory
_EVIDENCE = 48
_THUMBNAIL_PX = 160


@dataclass(frozen=True)
class Settings:
    """What counts as the same image."""

    detector: Detector | None
    detector_name: str
    max_distance_bits: int = 31
    min_quality: int = 50
    min_probability: float = MIN_PROBABILITY  # that two aligned images are copies
    planted: int = 0  # examples that are edited in every way, to measure the recall
    reviews: Reviews = field(default_factory=lambda: Reviews({}))  # that the page of an earlier run saved


@dataclass(frozen=True)
class Compared:
    """The result: the overlap report, and how many images of the second set were read, or left out by reason."""

    report: EvalReport
    images: int
    left_out: dict[str, int]
    control: Control
    recall: Recall | None


def compare_sets(
    first: Source,
    second: Source,
    out: Path,
    settings: Settings,
    on_progress: Callable[[str, int], object] = lambda step, images: None,
) -> Compared:
    """Find the examples of `first` that `second` contains, and write the report to the folder `out`.

    `on_progress` is called with what is done and the number of images so far.

    Raises:
        FileNotFoundError, DedupError: one line; a set has no readable image, or another layout.
    """
    for source in (first, second):
        if out.resolve().is_relative_to(source.path.resolve()):
            raise DedupError(f"{out}: the report would be written into {source.path}, a set: choose another folder")
    name = as_text(first.path.resolve().name)
    summary = index_eval_set(
        name,
        first.kind,
        first.path,
        out / "index",
        image_column=first.image_column,
        detector=settings.detector,
        on_progress=lambda done: on_progress(f"indexing {first.path}", done),
    )
    folder = out / "index" / name
    with tempfile.TemporaryDirectory(prefix="wit-overlap-") as scratch:
        index_control(CONTROL_IMAGES, Path(scratch), settings.detector)
        known = _Known.load([Path(scratch) / CONTROL_SET, folder], settings)
        counts: Counter[str] = Counter()
        tables, false = [], [OVERLAP.empty_table()]
        for batch in _decoded(second, counts):
            false_matches, found = known.find(batch)
            tables.append(found)
            false.append(false_matches)
            _keep_thumbnails(batch, tables[-1]["uid"].to_pylist(), Path(scratch))
            on_progress(f"searching in {second.path}", counts["kept"])
        if not counts["kept"]:
            raise DedupError(f"{second.path}: no readable image found")
        overlap = pa.concat_tables([OVERLAP.empty_table(), *tables]).sort_by(
            [("eval_id", "ascending"), ("distance", "ascending"), ("uid", "ascending")]
        )
        kept = overlap.append_column("kept", pa.repeat(True, overlap.num_rows))
        index = pq.read_table(folder / "index.parquet", columns=["eval_id", "reason", "quality"])
        recall = _measure(known, first, summary, settings) if settings.planted else None
        index = index.append_column("long_captions", pa.nulls(index.num_rows, pa.int32()))
        published = Published(name, index, kept, planted=recall.table() if recall else PLANTED.empty_table())
        report = _report(published, folder, Path(scratch), settings)
    images = counts.pop("kept")
    rendered = control_table(known.indexes[0].eval_ids, pa.concat_tables(false))
    control = Control.of(rendered, images)
    compared = Compared(report, images, dict(counts), control, recall)
    data = ReportData(
        _facts(first, second, compared, settings),
        (),
        (report,),
        settings.min_quality,
        detector=bool(settings.detector),
        control=control,
    )
    write_report(data, out)
    write_published([published], out, source=as_text(second.path.resolve().name), control=rendered)
    if settings.reviews.verdicts:
        (out / "reviews.json").write_text(settings.reviews.to_json(), encoding="utf-8")
    else:
        (out / "reviews.json").unlink(missing_ok=True)
    (out / "measured.json").write_text(json.dumps(_measured_json(compared), indent=1) + "\n")
    return compared


def _facts(first: Source, second: Source, compared: Compared, settings: Settings) -> tuple[tuple[str, str], ...]:
    return (
        ("Evaluation set", as_text(str(first.path))),
        ("Compared with", f"{as_text(str(second.path))}, {compared.images:,} images"),
        ("Detector of edited copies", settings.detector_name),
    )


def _measured_json(compared: Compared) -> dict[str, Any]:
    recall, corrected = compared.recall, compared.report.corrected
    return {
        "control": compared.control.to_json(),
        "recall": recall.to_json() if recall else None,
        "corrected_fraction": dict(zip(("value", "low", "high"), corrected, strict=True)) if corrected else None,
    }


def _measure(known: "_Known", first: Source, summary: EvalSummary, settings: Settings) -> Recall:
    """Plant edits of examples that are spread evenly over the set."""
    pictures = spread_pictures(first.examples(), summary.examples, settings.planted)

    def find(planted: list[tuple[str, bytes]]) -> pa.Table:
        batch = [_Image(name, file, decode_rgb(file)) for name, file in planted]
        return known.find(batch, only=[1])[0]

    return measure_recall(find, pictures)


class _Image(NamedTuple):
    name: str
    file: bytes
    picture: np.ndarray


def _decoded(source: Source, counts: Counter[str]) -> Iterator[list[_Image]]:
    """Yield the readable images in batches; the others are counted by reason."""
    remaining = source.examples()
    while examples := list(islice(remaining, _BATCH)):
        batch = []
        for example in examples:
            try:
                if example.failure:
                    counts[example.failure] += 1
                else:
                    batch.append(_Image(example.eval_id, example.encoded, decode_rgb(example.encoded)))
            except ImageDecodeError as error:
                counts[error.failure] += 1
        counts["kept"] += len(batch)
        if batch:
            yield batch


@dataclass(frozen=True)
class _Known:
    """The negative control and an indexed set, to compare images with."""

    indexes: list[EvalIndex]
    finder: CopyFinder | None
    settings: Settings

    @classmethod
    def load(cls, folders: list[Path], settings: Settings) -> Self:
        indexes = [EvalIndex.load(pq.read_table(folder / "index.parquet")) for folder in folders]
        return cls(indexes, _finder(folders, settings.detector, settings.min_probability), settings)

    def find(self, batch: list[_Image], only: Sequence[int] = (0, 1)) -> list[pa.Table]:
        """Return the overlap rows of a batch with each set."""
        fingerprints = [fingerprint(one.picture) for one in batch]
        images = pa.table(
            {
                "uid": pa.array([one.name for one in batch], pa.string()),
                "pdq": pa.array([one.pdq for one in fingerprints], pa.binary(32)),
                "pdq_quality": pa.array([one.quality for one in fingerprints], pa.int32()),
                "sha256": pa.array([hashlib.sha256(one.file).hexdigest() for one in batch], pa.string()),
            }
        )
        copies: list[list[Copy]] = [[] for _ in self.indexes]
        if self.finder:
            described = Described.of(self.finder.detector, [one.picture for one in batch])
            copies = self.finder.find(described, lambda row: batch[row].picture, only)
        bits, quality = self.settings.max_distance_bits, self.settings.min_quality
        return [
            find_overlap(
                images, self.indexes[number], max_distance_bits=bits, min_quality=quality, copies=copies[number]
            )
            for number in only
        ]


def _finder(folders: list[Path], detector: Detector | None, min_probability: float) -> CopyFinder | None:
    if detector is None:
        return None
    vectors = [read_vectors(pq.read_table(folder / "vectors.parquet"), detector) for folder in folders]
    index = VectorIndex.build(np.concatenate(vectors), len(VIEWS), [len(rows) // len(VIEWS) for rows in vectors])
    pixels = [Thumbnails(folder / "thumbnails.parquet").pixels for folder in folders]
    return CopyFinder(detector, index, [KnownSet(one, min_probability) for one in pixels])


def _keep_thumbnails(batch: list[_Image], names: list[str], scratch: Path) -> None:
    for one in batch:
        if one.name in names:
            _thumbnail_file(scratch, one.name).write_bytes(thumbnail(one.picture, _THUMBNAIL_PX))


def _thumbnail_file(scratch: Path, image_id: str) -> Path:
    return scratch / hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).hexdigest()


def _report(published: Published, folder: Path, scratch: Path, settings: Settings) -> EvalReport:
    labels = pq.read_table(folder / "index.parquet", columns=["eval_id", "label"])

    def evidence(pairs: pa.Table) -> tuple[Evidence, ...]:
        picked = pick_evidence(pairs, _EVIDENCE).to_pylist()
        known = dict(zip(labels["eval_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
        jpegs = read_thumbnails(folder / "thumbnails.parquet", [row["eval_id"] for row in picked])
        return tuple(
            Evidence(
                **{name: row[name] for name in ("eval_id", "uid", "distance", "view", "degree", "edit")},
                label=known[row["eval_id"]],
                caption=row["uid"],
                url="",
                page_url="",
                eval_jpeg=outline(jpegs.get(row["eval_id"]), row),
                image_jpeg=_thumbnail_file(scratch, row["uid"]).read_bytes(),
            )
            for row in picked
        )

    bits, quality = settings.max_distance_bits, settings.min_quality
    derived = derive(published, bits, quality, evidence, settings.reviews)
    least = settings.min_probability if settings.detector else None
    return replace(derived, evidence_limit=_EVIDENCE, min_probability=least)
