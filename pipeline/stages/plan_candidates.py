"""The plan's first steps, pairs files -> candidate parts: every pair once, in the part that its URL's hash gives it."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import Pieces, gather, gather_pieces, spill
from pipeline.engine.sorted_rows import Fewer
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, Work, digest
from pipeline.engine.workspace import Workspace
from pipeline.filters.frequency import CAPTION_USES, FREQUENT, frequent_captions, needed_uses
from pipeline.records import PAIRS, Reason
from pipeline.stages.pairs import pair_files
from pipeline.stages.plan_parts import CANDIDATE_BYTES, MOST_AT_ONCE, candidate_parts

_SPILL_ROWS, _MOST_SPILLED = 2_000_000, 4_096
"""Pairs files are spilled together until they hold this many rows, or more if there would be too many files to gather
from."""

USE_BYTES = 200
"""Memory of a caption's use on an image, with the copies that sorting makes (benchmarks/row_memory.py)."""

_ROUTED = PAIRS.append(pa.field("part", pa.int32())).append(pa.field("url_hash", pa.uint64()))


def write_candidates(
    build: Build, config: Config, pairs: Mapping[str, Marker], rows: int, stage_digest: str
) -> dict[str, Marker]:
    """Write the candidate parts of `rows` pairs; return the marker of each bucket of parts."""
    at_once = min(MOST_AT_ONCE, build.rows_at_once(CANDIDATE_BYTES))
    parts = Pieces(candidate_parts(rows, config.fetch.parts, at_once))
    inputs = digest(stage_digest, parts.count)
    groups = {f"{i:05d}": names for i, names in enumerate(_groups(pairs, max(_SPILL_ROWS, rows // _MOST_SPILLED)))}

    def of_groups(step: str, work: Work) -> list[str]:
        units = [Unit(name, digest(inputs, names), _Spill(name, names)) for name, names in groups.items()]
        return files_of(run_units(build, f"plan/{step}", units, Stateless(work)))

    def of_buckets(step: str, work: Work) -> dict[str, Marker]:
        units = [Unit(f"{bucket:05d}", digest(inputs, bucket), bucket) for bucket in range(parts.buckets)]
        return run_units(build, f"plan/{step}", units, Stateless(work))

    frequent: list[str] = []
    if (limit := config.filters.max_images_per_caption) is not None:
        uses = of_groups("captions", _SpillCaptions(parts, config.seed, limit))
        pieces = -(-rows // (parts.buckets * build.rows_at_once(USE_BYTES))) or 1
        frequent = files_of(of_buckets("frequent", _FindFrequent(uses, parts.buckets, pieces, limit)))
    spilled = of_groups("spill", _SpillPairs(parts, config.seed))
    return of_buckets("gather", _GatherParts(spilled, parts, frequent, config.seed, at_once))


def files_of(markers: Mapping[str, Marker]) -> list[str]:
    """Return the outputs of units, in the order of the units."""
    return [name for marker in markers.values() for name in marker.outputs]


def _groups(pairs: Mapping[str, Marker], group_rows: int) -> list[list[str]]:
    """Group pairs files, in order, into lists of about `group_rows` rows."""
    groups: list[list[str]] = []
    rows = group_rows
    for marker in pairs.values():
        if rows >= group_rows:
            groups.append([])
            rows = 0
        groups[-1].extend(pair_files({"": marker}))
        rows += marker.counts["kept"]
    return groups


def url_hashes(urls: Sequence[str], seed: int) -> np.ndarray:
    """Return a keyed 64-bit hash of each URL, (n,) uint64: it determines the part and the order in it.

    Also that of other texts: captions.
    """
    key = seed.to_bytes(8, "little")
    joined = b"".join(hashlib.blake2b(url.encode(), digest_size=8, key=key).digest() for url in urls)
    return np.frombuffer(joined, dtype="<u8")


@dataclass(frozen=True)
class _Spill:
    name: str
    files: list[str]


@dataclass(frozen=True)
class _SpillPairs:
    parts: Pieces
    seed: int

    def run(self, task: _Spill, output: UnitOutput) -> Mapping[str, int]:
        rows = spill(
            output,
            f".wit/plan/spilled/{task.name}.rows",
            _ROUTED,
            self.parts.buckets,
            self._routed(output.workspace, task),
        )
        return {"inputs": rows, "kept": rows}

    def _routed(self, workspace: Workspace, task: _Spill) -> Iterator[tuple[pa.Table, np.ndarray]]:
        for name in task.files:
            for batch in workspace.read_batches(name, PAIRS.names):
                table = pa.Table.from_batches([batch])
                hashes = url_hashes(table["url"].to_pylist(), self.seed)
                part = (hashes % np.uint64(self.parts.count)).astype(np.int32)
                table = table.append_column("part", pa.array(part)).append_column("url_hash", pa.array(hashes))
                yield table, self.parts.bucket_of(part)


@dataclass(frozen=True)
class _SpillCaptions:
    """Bring the uses of each caption together, as few as tell whether it is too frequent."""

    parts: Pieces
    seed: int
    limit: int

    def run(self, task: _Spill, output: UnitOutput) -> Mapping[str, int]:
        rows = 0
        held = [CAPTION_USES.empty_table()]
        for name in task.files:
            for batch in output.workspace.read_batches(name, ["url", "caption"]):
                rows += batch.num_rows
                held.append(self._uses(batch))
                if sum(table.num_rows for table in held) >= _SPILL_ROWS:
                    held = [needed_uses(pa.concat_tables(held), self.limit)]
        needed = needed_uses(pa.concat_tables(held), self.limit)
        buckets = self.parts.buckets
        bucket = (needed["caption_hash"].to_numpy() % np.uint64(buckets)).astype(np.int32)
        spill(output, f".wit/plan/captions/{task.name}.rows", CAPTION_USES, buckets, [(needed, bucket)])
        return {"inputs": rows, "kept": rows}

    def _uses(self, batch: pa.RecordBatch) -> pa.Table:
        urls = url_hashes(batch.column("url").to_pylist(), self.seed)
        part = (urls % np.uint64(self.parts.count)).astype(np.int32)
        captions = url_hashes(batch.column("caption").to_pylist(), self.seed)
        return pa.table([captions, urls, self.parts.bucket_of(part)], CAPTION_USES)


@dataclass(frozen=True)
class _FindFrequent:
    """Send the captions of too many images to the buckets of parts that have them."""

    uses: list[str]
    buckets: int
    pieces: int
    limit: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        pieces = gather_pieces(output.workspace, self.uses, bucket, CAPTION_USES, range(self.pieces), self._piece_of)
        found = (frequent_captions(uses, self.limit) for uses in pieces)
        routed = ((captions, captions["bucket"].to_numpy()) for captions in found)
        rows = spill(output, f".wit/plan/frequent/{bucket:05d}.rows", FREQUENT, self.buckets, routed)
        return {"inputs": rows, "kept": rows}

    def _piece_of(self, uses: pa.Table) -> np.ndarray:
        """All hashes of captions of a bucket have the same remainder; their quotients differ."""
        quotients = uses["caption_hash"].to_numpy() // np.uint64(self.buckets)
        return (quotients % np.uint64(self.pieces)).astype(np.int32)


@dataclass(frozen=True)
class _GatherParts:
    spilled: list[str]
    parts: Pieces
    frequent: list[str]
    seed: int
    at_once: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        counts = Counter(inputs=0, kept=0)

        def without_repeats(pairs: pa.Table) -> pa.Table:
            unique = drop_repeats(pairs)
            dropped = pairs.num_rows - unique.num_rows
            counts.update({Reason.DUPLICATE_PAIR: dropped, "inputs": dropped})
            return unique

        frequent = gather(output.workspace, self.frequent, bucket, FREQUENT)["caption_hash"].to_numpy()
        parts = self.parts.of_bucket(bucket)
        fewer = Fewer(self.at_once, without_repeats)  # a pair can be on a million pages
        tables = gather_pieces(output.workspace, self.spilled, bucket, _ROUTED, parts, _part_of, fewer)
        for part, of_part in zip(parts, tables, strict=True):
            unique = without_repeats(of_part)
            kept = self._without(unique, frequent) if len(frequent) else unique
            output.write_table(f".wit/plan/candidates/part-{part:05d}.parquet", kept.select(PAIRS.names))
            counts[Reason.FREQUENT_CAPTION] += unique.num_rows - kept.num_rows
            counts.update(inputs=unique.num_rows, kept=kept.num_rows)
        return counts

    def _without(self, pairs: pa.Table, frequent: np.ndarray) -> pa.Table:
        captions = url_hashes(pairs["caption"].to_pylist(), self.seed)
        return pairs.filter(pa.array(~np.isin(captions, frequent)))


def _part_of(rows: pa.Table) -> np.ndarray:
    """Return the column `part`, (n,) int32."""
    return np.asarray(rows["part"].to_numpy())


def drop_repeats(pairs: pa.Table) -> pa.Table:
    """Sort pairs by (URL hash, uid) and keep each uid once: the row with the smallest page, source, field and offset.

    One whose image is in the source's own file comes before one whose image is on the web (null).
    """
    order = ["url_hash", "uid", "image_bytes", "page_url", "source", "text_field", "source_offset"]
    pairs = pairs.sort_by([(name, "ascending") for name in order]).combine_chunks()
    uids = pairs["uid"]
    if len(uids) < 2:
        return pairs
    first = pc.not_equal(uids[1:].combine_chunks(), uids[:-1].combine_chunks())
    return pairs.filter(pa.concat_arrays([pa.array([True]), first]))
