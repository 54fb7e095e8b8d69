"""At most so many pairs of a family of near-equal captions in the plan: `filters.max_pairs_per_family`.

A caption is in the family of the first set of words, by a hash, among its own and those near it (filters/families.py).
Of a family the pairs that are first by a seeded hash stay. Both are decided over the whole pool: rows are brought
together through files (engine/shuffle.py), by band, by set of words, by family, and back to the parts.

    words     candidates -> sets of words, by band; and the pairs of each set, by set
    near      band -> of each set of words the first one near it
    families  sets of words -> their pairs, by family
    over      family -> its pairs without the first ones, by part
    limit     candidates -> candidates without those
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.config.filters import FiltersConfig
from pipeline.engine.run import Build, run_units
from pipeline.engine.shuffle import Pieces, gather_pieces, spill
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, Work, add_counts, digest
from pipeline.engine.workspace import Workspace
from pipeline.filters.families import BAND_ROWS, FIRSTS, band_rows, firsts_of_bands, word_set_keys
from pipeline.records import Reason
from pipeline.stages.plan_candidates import files_of, url_hashes
from pipeline.stages.plan_parts import in_order

PAIR_BYTES = 6_000
"""Memory of a pair in a piece of the bands: 20 rows with its words, and the copies that sorting makes."""

_FOLDER = ".wit/plan/families"

_OF_SET = pa.schema([("key", pa.uint64()), ("pair", pa.uint64()), ("part", pa.int32())])
"""A pair by the hash of its uid, its part, and the key of its set of words or of its family."""


def cap_families(
    build: Build, filters: FiltersConfig, seed: int, names: Sequence[str], pairs: int, inputs: str
) -> tuple[list[str], Mapping[str, int]]:
    """Return the parts of the candidates without the pairs over the cap, and the counts of those.

    `names` are the parts, in order, which hold `pairs` in all; `inputs` is a digest of their content.
    """
    assert filters.max_pairs_per_family is not None
    similarity, limit = filters.family_similarity, filters.max_pairs_per_family
    keys, parts = Pieces(-(-pairs // build.rows_at_once(PAIR_BYTES)) or 1), Pieces(len(names))

    def run(step: str, units: int, work: Work) -> dict[str, Marker]:
        numbered = [Unit(f"{n:05d}", digest(inputs, len(names), similarity, limit, n), n) for n in range(units)]
        return run_units(build, f"plan/families-{step}", numbered, Stateless(work))

    spilled = files_of(run("words", parts.buckets, _SpillWords(names, keys, similarity, seed)))
    bands, uses = ([name for name in spilled if f"/{kind}/" in name] for kind in ("bands", "uses"))
    firsts = files_of(run("near", keys.buckets, _FindFirsts(bands, keys, similarity)))
    families = files_of(run("families", keys.buckets, _FindFamilies(uses, firsts, keys)))
    over = files_of(run("over", keys.buckets, _FindOver(families, keys, parts, limit)))
    limited = run("limit", parts.buckets, _Limit(names, over, parts, seed))
    counts = add_counts(limited.values())
    return in_order(files_of(limited)), {Reason.NEAR_EQUAL_CAPTION: counts["inputs"] - counts["kept"]}


def over_family_cap(pairs: pa.Table, filters: FiltersConfig, seed: int) -> np.ndarray:
    """Return which pairs would be dropped if these, each once, were the pool: in memory. Needs `uid` and `caption`."""
    captions = pairs["caption"].combine_chunks()
    keys, hashes = word_set_keys(captions), url_hashes(pairs["uid"].to_pylist(), seed)
    firsts = firsts_of_bands(band_rows(captions, keys, filters.family_similarity), filters.family_similarity)
    uses = pa.table([keys, hashes, np.zeros(len(keys), np.int32)], _OF_SET).filter(pa.array(keys != 0))
    over = _over(_by_family(uses, firsts), filters.max_pairs_per_family or len(keys))
    return (keys != 0) & np.isin(hashes, over["pair"].to_numpy())


def _piece_of(column: str, pieces: Pieces) -> Callable[[pa.Table], np.ndarray]:
    """Return what finds the piece of rows by a column of hashes."""
    return lambda rows: (rows[column].to_numpy() % np.uint64(pieces.count)).astype(np.int32)


def _routed(rows: pa.Table, column: str, pieces: Pieces) -> tuple[pa.Table, np.ndarray]:
    return rows, pieces.bucket_of(_piece_of(column, pieces)(rows))


def _pieces(
    workspace: Workspace, names: Sequence[str], bucket: int, schema: pa.Schema, column: str, pieces: Pieces
) -> Iterator[pa.Table]:
    piece_of = _piece_of(column, pieces)
    return gather_pieces(workspace, names, bucket, schema, pieces.of_bucket(bucket), piece_of)


@dataclass(frozen=True)
class _SpillWords:
    names: Sequence[str]
    keys: Pieces
    similarity: float
    seed: int

    def run(self, group: int, output: UnitOutput) -> Mapping[str, int]:
        uses: list[pa.Table] = []
        bands = self._bands(output.workspace, group, uses)
        spill(output, f"{_FOLDER}/bands/{group:05d}.rows", BAND_ROWS, self.keys.buckets, bands)
        by_key = (_routed(rows, "key", self.keys) for rows in uses)
        rows = spill(output, f"{_FOLDER}/uses/{group:05d}.rows", _OF_SET, self.keys.buckets, by_key)
        return {"inputs": rows, "kept": rows}

    def _bands(self, workspace: Workspace, group: int, uses: list[pa.Table]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield the bands of the parts of a group; add to `uses` the pairs."""
        for part in Pieces(len(self.names)).of_bucket(group):
            for batch in workspace.read_batches(self.names[part], ["uid", "caption"]):
                keys = word_set_keys(batch.column("caption"))
                yield _routed(band_rows(batch.column("caption"), keys, self.similarity), "band", self.keys)
                in_family = keys != 0
                pairs = url_hashes(batch.column("uid").to_pylist(), self.seed)[in_family]
                uses.append(pa.table([keys[in_family], pairs, np.full(len(pairs), part, np.int32)], _OF_SET))


@dataclass(frozen=True)
class _FindFirsts:
    bands: list[str]
    keys: Pieces
    similarity: float

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        pieces = _pieces(output.workspace, self.bands, bucket, BAND_ROWS, "band", self.keys)
        found = (_routed(firsts_of_bands(rows, self.similarity), "key", self.keys) for rows in pieces)
        rows = spill(output, f"{_FOLDER}/firsts/{bucket:05d}.rows", FIRSTS, self.keys.buckets, found)
        return {"inputs": rows, "kept": rows}


@dataclass(frozen=True)
class _FindFamilies:
    uses: list[str]
    firsts: list[str]
    keys: Pieces

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        uses = _pieces(output.workspace, self.uses, bucket, _OF_SET, "key", self.keys)
        firsts = _pieces(output.workspace, self.firsts, bucket, FIRSTS, "key", self.keys)
        found = (_routed(_by_family(*both), "key", self.keys) for both in zip(uses, firsts, strict=True))
        rows = spill(output, f"{_FOLDER}/families/{bucket:05d}.rows", _OF_SET, self.keys.buckets, found)
        return {"inputs": rows, "kept": rows}


def _by_family(uses: pa.Table, firsts: pa.Table) -> pa.Table:
    """Return the pairs with the key of their family: the smallest first one of any band, else their own."""
    key, first = firsts["key"].to_numpy(), firsts["first"].to_numpy()
    order = np.lexsort((first, key))
    has_first, at = np.unique(key[order], return_index=True)
    of_pair = uses["key"].to_numpy()
    if len(has_first):
        place = np.minimum(np.searchsorted(has_first, of_pair), len(has_first) - 1)
        of_pair = np.where(has_first[place] == of_pair, first[order][at][place], of_pair)
    return uses.set_column(0, "key", pa.array(of_pair))


@dataclass(frozen=True)
class _FindOver:
    families: list[str]
    keys: Pieces
    parts: Pieces
    limit: int

    def run(self, bucket: int, output: UnitOutput) -> Mapping[str, int]:
        pieces = _pieces(output.workspace, self.families, bucket, _OF_SET, "key", self.keys)
        found = (_over(rows, self.limit) for rows in pieces)
        routed = ((over, self.parts.bucket_of(over["part"].to_numpy())) for over in found)
        rows = spill(output, f"{_FOLDER}/over/{bucket:05d}.rows", _OF_SET, self.parts.buckets, routed)
        return {"inputs": rows, "kept": rows}


def _over(rows: pa.Table, limit: int) -> pa.Table:
    """Return the pairs of families without the first `limit` of each."""
    key, pair = rows["key"].to_numpy(), rows["pair"].to_numpy()
    order = np.lexsort((pair, key))
    rank = np.arange(len(order)) - np.searchsorted(key[order], key[order])
    return rows.take(pa.array(order[rank >= limit]))


@dataclass(frozen=True)
class _Limit:
    names: Sequence[str]
    over: list[str]
    parts: Pieces
    seed: int

    def run(self, group: int, output: UnitOutput) -> Mapping[str, int]:
        counts = {"inputs": 0, "kept": 0}
        parts = self.parts.of_bucket(group)
        dropped = gather_pieces(
            output.workspace, self.over, group, _OF_SET, parts, lambda rows: rows["part"].to_numpy()
        )
        for part, over in zip(parts, dropped, strict=True):
            pairs = output.workspace.read_table(self.names[part])
            hashes = url_hashes(pairs["uid"].to_pylist(), self.seed)
            kept = pairs.filter(pa.array(~np.isin(hashes, over["pair"].to_numpy())))
            output.write_table(f"{_FOLDER}/candidates/part-{part:05d}.parquet", kept)
            counts["inputs"] += pairs.num_rows
            counts["kept"] += kept.num_rows
        return counts
