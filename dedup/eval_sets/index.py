"""Index an evaluation set: one pass over its images, kept as fingerprints and thumbnails.

    <out_dir>/<name>/index.parquet       one row per example, unreadable ones included (`INDEX`)
    <out_dir>/<name>/thumbnails.parquet  eval_id and a small JPEG, in small row groups, to be picked from by row
    <out_dir>/<name>/vectors.parquet     eval_id and the descriptors of all views (docs/copies.md), with a detector only
    <out_dir>/<name>/captions.parquet    eval_id and a caption (`CAPTIONS`), if the set has captions

They appear whole or not at all, index.parquet last; equal images give equal bytes.
"""

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from dedup.copies.detector import Detector, DetectorError
from dedup.copies.match import describe_views
from dedup.decode import ImageDecodeError, decode_rgb
from dedup.errors import DedupError
from dedup.eval_sets.read import Example, read_examples
from dedup.pdq import PDQ_BYTES, VIEWS, fingerprint, fingerprint_views

INDEX = pa.schema(
    [
        ("eval_id", pa.string()),  # path or key inside the set
        ("label", pa.string()),
        (
            "reason",
            pa.string(),
        ),  # why the image cannot be read; null for the indexed ones, which have the columns below
        ("sha256", pa.string()),  # of the encoded bytes, hex
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("quality", pa.int32()),  # PDQ quality, 0..100
        ("views", pa.binary(len(VIEWS) * PDQ_BYTES)),  # the PDQ hashes of `pdq.VIEWS`, one after another
    ]
)

VECTORS = pa.schema([("eval_id", pa.string()), ("vectors", pa.binary())])  # of the readable examples, in their order

CAPTIONS = pa.schema([("eval_id", pa.string()), ("caption", pa.string())])
"""The captions of the readable examples, in their order; an example may have several."""

_DETECTOR_KEY = b"wit.detector"  # in the metadata of vectors.parquet: the SHA-256 of the model
_THUMBNAILS = pa.schema([("eval_id", pa.string()), ("jpeg", pa.binary())])
_THUMBNAIL_PX = 160  # at which copies are verified
_THUMBNAIL_QUALITY = 80

# Images in memory at a time, and rows in one row group of the thumbnails; fewer where they are large.
_BATCH = 128
_BATCH_BYTES = 1 << 28
_INDEX_ROWS = 16_384


@dataclass(frozen=True)
class EvalSummary:
    """Counts of a set's examples: `examples` = `indexed` + the sum of `failures`."""

    name: str
    examples: int
    indexed: int
    failures: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Return the account in one mapping: inputs, kept, and each reason."""
        return {"inputs": self.examples, "kept": self.indexed, **self.failures}


def index_eval_set(
    name: str,
    kind: str,
    path: str | os.PathLike[str],
    out_dir: Path,
    *,
    image_column: str = "image",
    label_column: str | None = None,
    caption_column: str | None = None,
    detector: Detector | None = None,
    on_progress: Callable[[int], object] = lambda examples: None,
) -> EvalSummary:
    """Index the set at `path` into `out_dir/name`, replacing what is there; see `read_examples` for the layouts.

    `on_progress` is called with the number of examples done so far, every 128.
    Raises `FileNotFoundError` or `DedupError` with one line if there is nothing to index.
    """
    examples = read_examples(
        kind, os.fspath(path), image_column=image_column, label_column=label_column, caption_column=caption_column
    )
    counts: Counter[str] = Counter()
    folder = out_dir / name
    with ExitStack() as stack:
        index = stack.enter_context(_replacing(folder / "index.parquet"))
        thumbnails = stack.enter_context(_replacing(folder / "thumbnails.parquet"))
        vectors = stack.enter_context(_replacing(folder / "vectors.parquet")) if detector else None
        captions = stack.enter_context(_replacing(folder / "captions.parquet")) if caption_column else None
        with ExitStack() as writers:
            output = _Output(
                writers.enter_context(_writer(index, INDEX)),
                writers.enter_context(_writer(thumbnails, _THUMBNAILS)),
                writers.enter_context(_writer(vectors, _vectors_schema(detector))) if vectors and detector else None,
                writers.enter_context(_writer(captions, CAPTIONS)) if captions else None,
            )
            _write(_measured(examples, detector), output, counts, on_progress)
        return _summary(name, os.fspath(path), counts)


def read_thumbnails(file: str | os.PathLike[str] | BinaryIO, eval_ids: Iterable[str]) -> dict[str, bytes]:
    """Return the JPEG of each wanted example that the thumbnails file has; reads only the row groups they are in."""
    wanted = set(eval_ids)
    found: dict[str, bytes] = {}
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    for group in range(parquet.num_row_groups):
        ids = parquet.read_row_group(group, ["eval_id"])["eval_id"]
        if pc.any(pc.is_in(ids, pa.array(wanted, pa.string()))).as_py():
            rows = parquet.read_row_group(group).to_pylist()
            found |= {row["eval_id"]: row["jpeg"] for row in rows if row["eval_id"] in wanted}
    return found


def thumbnail(rgb: Any, max_side_px: int = _THUMBNAIL_PX) -> bytes:
    """Return a small JPEG of an RGB array; never enlarged."""
    image = Image.fromarray(rgb)
    image.thumbnail((max_side_px, max_side_px), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()


class Thumbnails:
    """A thumbnails file on this machine, which examples are read from by number. Safe to use from threads."""

    def __init__(self, file: Path) -> None:
        self._parquet = pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)
        facts = self._parquet.metadata
        self._starts = np.cumsum([0, *(facts.row_group(group).num_rows for group in range(facts.num_row_groups))])
        self._lock = threading.Lock()

    def pixels(self, row: int) -> np.ndarray:
        """Return the RGB pixels of the readable example with this number."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            jpegs = self._parquet.read_row_group(group, ["jpeg"], use_threads=False)["jpeg"]
        return decode_rgb(jpegs[row - int(self._starts[group])].as_py())


def read_vectors(table: pa.Table | pa.RecordBatch, detector: Detector) -> np.ndarray:
    """Return the descriptors of all views in rows of a vectors.parquet, `(n * views, dimensions)` int8.

    Raises:
        DetectorError: another detector made them.
    """
    made_by = (table.schema.metadata or {}).get(_DETECTOR_KEY, b"").decode()
    if made_by != detector.sha256:
        raise DetectorError(
            f"the index was made by the copy detector {made_by[:12] or 'of an earlier version'}, not by "
            f"{detector.sha256[:12]}: index the set again"
        )
    return np.frombuffer(b"".join(table["vectors"].to_pylist()), np.int8).reshape(-1, detector.card.dimensions)


def outline(jpeg: bytes | None, pair: Mapping[str, Any]) -> bytes | None:
    """Return a thumbnail on which the part that a copy shows is outlined, if the overlap row knows its corners."""
    corners = pair["corners"]
    if jpeg is None or corners is None or not pair["edit"]:
        return jpeg
    with Image.open(io.BytesIO(jpeg)) as image:
        drawn = image.convert("RGB")
    points = [(x * (drawn.width - 1), y * (drawn.height - 1)) for x, y in zip(corners[::2], corners[1::2], strict=True)]
    pen = ImageDraw.Draw(drawn)
    for colour, width in (((255, 255, 255), 4), ((214, 40, 40), 2)):
        pen.line([*points, points[0]], fill=colour, width=width)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=_THUMBNAIL_QUALITY)
    return buffer.getvalue()


def _vectors_schema(detector: Detector) -> pa.Schema:
    return VECTORS.with_metadata({_DETECTOR_KEY: detector.sha256.encode()})


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, write_page_checksum=True)


@dataclass(frozen=True)
class _Output:
    facts: pq.ParquetWriter
    thumbnails: pq.ParquetWriter
    vectors: pq.ParquetWriter | None
    captions: pq.ParquetWriter | None


@dataclass(frozen=True)
class _Measured:
    row: dict[str, Any]  # of the index
    jpeg: bytes = b""
    vectors: bytes = b""
    captions: tuple[str, ...] = ()


def _measured(examples: Iterable[Example], detector: Detector | None) -> Iterator[list[_Measured]]:
    """Yield batches of measured examples, in order; decoding runs on all cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for batch in _batches(examples):
            yield list(pool.map(partial(_measure, detector), batch))


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch, held_bytes = list[Example](), 0
    for example in examples:
        batch.append(example)
        held_bytes += len(example.encoded)
        if len(batch) == _BATCH or held_bytes >= _BATCH_BYTES:
            yield batch
            batch, held_bytes = [], 0
    if batch:
        yield batch


def _measure(detector: Detector | None, example: Example) -> _Measured:
    row: dict[str, Any] = {"eval_id": example.eval_id, "label": example.label, "reason": example.failure or None}
    if example.failure:
        return _Measured(row)
    row["sha256"] = hashlib.sha256(example.encoded).hexdigest()
    try:
        rgb = decode_rgb(example.encoded)
    except ImageDecodeError as error:
        return _Measured(row | {"reason": error.failure})
    views = b"".join(pdq for _, pdq in fingerprint_views(rgb))
    height, width = rgb.shape[:2]
    facts = {"width": width, "height": height, "quality": fingerprint(rgb).quality, "views": views}
    vectors = describe_views(detector, [rgb]).tobytes() if detector else b""
    return _Measured(row | facts, thumbnail(rgb), vectors, example.captions)


def _write(
    batches: Iterable[list[_Measured]], output: _Output, counts: Counter[str], on_progress: Callable[[int], object]
) -> None:
    rows: list[dict[str, Any]] = []
    for batch in batches:
        counts.update(one.row["reason"] or "kept" for one in batch)
        rows += [one.row for one in batch]
        shown = [one for one in batch if one.jpeg]
        ids = [one.row["eval_id"] for one in shown]
        output.thumbnails.write_table(pa.table([ids, [one.jpeg for one in shown]], _THUMBNAILS))
        if output.vectors:
            output.vectors.write_table(pa.table([ids, [one.vectors for one in shown]], VECTORS))
        if output.captions:
            texts = [(one.row["eval_id"], caption) for one in shown for caption in one.captions]
            output.captions.write_table(pa.table([list(c) for c in zip(*texts, strict=True)] or [[], []], CAPTIONS))
        if len(rows) >= _INDEX_ROWS:
            output.facts.write_table(pa.Table.from_pylist(rows, INDEX))
            rows = []
        on_progress(counts.total())
    output.facts.write_table(pa.Table.from_pylist(rows, INDEX))


def _summary(name: str, path: str, counts: Counter[str]) -> EvalSummary:
    failures = {reason: n for reason, n in sorted(counts.items()) if reason != "kept"}
    if not counts["kept"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in failures.items()) or "it is empty"
        raise DedupError(f"{path}: no readable image found ({reasons})")
    return EvalSummary(name, counts.total(), counts["kept"], failures)


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """Yield a path to write to, and rename it to `final` only if the block succeeds."""
    final.parent.mkdir(parents=True, exist_ok=True)
    unfinished = final.with_name(f"{final.name}.tmp")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        with suppress(OSError):  # an earlier index is still there
            final.parent.rmdir()
        raise
    unfinished.replace(final)
