"""The balance against a brute-force oracle: sort every query's pairs and take the first `cap`."""

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.beam.options import parse_beam_options
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import pair_uid
from pipeline.stages.balance import exact as balance
from pipeline.stages.balance import scans as stage
from pipeline.stages.balance.exact import (
    PRIORITY,
    Matches,
    Thresholds,
    WindowCount,
    WindowHistogram,
    Windows,
    count_matches,
    find_thresholds,
    query_hashes,
    selected_lists,
)
from pipeline.stages.balance.scans import QueryHashes, find_balance
from queries.allowlist import Allowlist, import_allowlist

QUERIES = 12


def make_pairs(query_lists: list[list[int]]) -> pa.Table:
    uids = [pair_uid("http://example.org/", str(i)) for i in range(len(query_lists))]
    return pa.table({"uid": uids, "query_ids": pa.array(query_lists, pa.list_(pa.int32()))})


def oracle(pairs: pa.Table, keys: np.ndarray, cap: int) -> dict[str, list[int]]:
    """Return uid -> the queries that select it, by sorting."""
    found = defaultdict(list)
    for uid, queries in zip(pairs["uid"].to_pylist(), pairs["query_ids"].to_pylist(), strict=True):
        for query in queries:
            number = int(uid, 16)
            high, low = np.array([number >> 64], np.uint64), np.array([number & (2**64 - 1)], np.uint64)
            priority = int(balance.priorities(keys[[query]], high, low)[0])
            found[query].append((priority, number, uid))
    selected = defaultdict(list)
    for query in sorted(found):
        for _, _, uid in sorted(found[query])[:cap]:
            selected[uid].append(query)
    return dict(selected)


def run_scans(
    batches: list[pa.Table], keys: np.ndarray, cap: int, sigmas: float, narrowings: int = 0
) -> dict[str, list[int]]:
    """Run the three scans over batches, as the stage does; windows that missed are narrowed so many times."""
    matches = [Matches.of(b["uid"], b["query_ids"], keys) for b in batches]
    counts = sum((count_matches(b["query_ids"], QUERIES) for b in batches), np.zeros(QUERIES, np.int64))
    thresholds, windows = Thresholds.unlimited(QUERIES), Windows.around(counts, cap, sigmas)
    while len(windows.head):
        bounds = [(0, len(windows.head) // 2), (len(windows.head) // 2, len(windows.head))]
        split = [WindowCount.of([m], windows).split(bounds) for m in matches]
        missed_heads = []
        for i, (a, b) in enumerate(bounds):
            if a == b:
                continue
            part = Windows(windows.head[a:b], windows.low[a:b], windows.high[a:b])
            key, missed = find_thresholds(part, WindowCount.total([s[i] for s in split]), cap)
            thresholds.key[part.head[~missed]] = key[~missed]
            missed_heads.append(part.head[missed])
        windows = windows.whole(np.concatenate(missed_heads))
        for _ in range(narrowings):
            histogram = WindowHistogram.total([WindowHistogram.of([m], windows) for m in matches])
            windows, inside = histogram.narrowed(windows, cap)
            assert (WindowHistogram.of(matches, windows).inside.sum(axis=1) == inside).all()
    selected = {}
    for batch, m in zip(batches, matches, strict=True):
        lists = selected_lists(m, thresholds.selects(m), batch.num_rows)
        lists.validate(full=True)
        selected |= {u: q for u, q in zip(batch["uid"].to_pylist(), lists.to_pylist(), strict=True) if q}
    return selected


head_heavy = st.lists(
    st.sets(st.one_of(st.sampled_from([0, 1]), st.integers(0, QUERIES - 2)), max_size=5).map(sorted), max_size=60
)


@settings(deadline=None, max_examples=150)
@given(
    head_heavy,
    st.integers(1, 12),
    st.sampled_from([0.0, 0.5, 8.0]),
    st.integers(1, 20),
    st.integers(0, 9),
    st.randoms(),
)
def test_equals_the_oracle_in_any_order_and_batching(query_lists, cap, sigmas, batch_rows, narrowings, random):
    pairs = make_pairs(query_lists)
    keys = query_hashes([f"query {i}" for i in range(QUERIES)], seed=7)
    order = list(range(pairs.num_rows))
    random.shuffle(order)
    shuffled = pairs.take(pa.array(order, pa.int64()))
    batches = [shuffled.slice(i, batch_rows) for i in range(0, shuffled.num_rows, batch_rows)]
    batches = [pa.table(b.to_pydict(), schema=pairs.schema) for b in batches]
    expected = oracle(pairs, keys, cap)
    assert run_scans(batches, keys, cap, sigmas, narrowings) == expected
    kept = balance.balance(shuffled, cap, 7, [f"query {i}" for i in range(QUERIES)])
    assert dict(zip(kept["uid"].to_pylist(), kept["selected_by"].to_pylist(), strict=True)) == expected


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_ties_are_broken_by_uid_and_the_cap_stays_exact(monkeypatch, bits):
    whole = balance.priorities
    shift = np.uint64(64 - bits) if bits else None
    coarse = lambda *a: whole(*a) >> shift if bits else whole(*a) * np.uint64(0)  # noqa: E731
    monkeypatch.setattr(balance, "priorities", coarse)
    pairs = make_pairs([[0, 1] if i % 3 else [0] for i in range(200)])
    keys = query_hashes([f"query {i}" for i in range(QUERIES)], seed=1)
    selected = run_scans([pairs], keys, 20, 8.0)
    assert selected == oracle(pairs, keys, 20) == run_scans([pairs], keys, 20, 0.0, narrowings=8)
    assert [sum(q in s for s in selected.values()) for q in (0, 1)] == [20, 20]


def test_a_full_size_head_is_found_in_its_window_at_the_first_look():
    keys = query_hashes(["the"], seed=3)
    pairs = make_pairs([[0]] * 60_000)
    matches = Matches.of(pairs["uid"], pairs["query_ids"], keys)
    windows = Windows.around(np.array([60_000]), 20_000)
    count = WindowCount.of([matches], windows)
    _, missed = find_thresholds(windows, count, 20_000)
    assert not missed.any()
    assert len(count.key) < 4_000  # only the neighbourhood of the threshold is collected


def test_a_second_balance_collects_few_keys_as_well(tmp_path, monkeypatch):
    """What is left of a plan: the smallest priorities of a query, a fifth lost, and pairs that others selected."""
    cap = 400
    monkeypatch.setattr(stage, "_FEW_KEYS", 64)
    (tmp_path / "queries.txt").write_text("dog\ncat\n")
    path = str(tmp_path / "queries.parquet")
    import_allowlist([str(tmp_path / "queries.txt")], path)
    keys = QueryHashes(path, 5)
    pool = make_pairs([[0]] * 20_000)
    priority = Matches.of(pool["uid"], pool["query_ids"], keys.load()).key["priority"]
    planned = np.sort(np.concatenate([np.argsort(priority)[: 2 * cap], np.arange(0, 20_000, 40)]))
    pairs = pool.take(pa.array(np.unique(planned)[np.arange(len(np.unique(planned))) % 5 > 0]))
    workspace = Workspace(str(tmp_path / "w"))
    UnitOutput(workspace).write_table("pairs.parquet", pairs)
    build = Build(workspace, parse_beam_options([]), Progress(None))
    found = find_balance(build, "again", ["pairs.parquet"], Allowlist.load(path), keys, cap=cap, inputs="x")
    matches = Matches.of(pairs["uid"], pairs["query_ids"], keys.load())
    chosen = found.thresholds.selects(matches)
    assert sorted(matches.key["priority"][chosen]) == sorted(matches.key["priority"])[:cap]
    last = sorted(workspace.sizes(".wit/again"))
    narrowed = workspace.read_table([name for name in last if "windows-" in name][-1])
    assert narrowed["inside"].to_pylist()[0] <= 16 * 20


def test_priorities_are_uniform_and_independent_between_queries():
    uids = np.frombuffer(b"".join(bytes.fromhex(pair_uid("u", str(i))) for i in range(50_000)), "<u8").reshape(-1, 2)
    first, second = query_hashes(["dog", "cat"], seed=0)
    a = balance.priorities(np.full(50_000, first), uids[:, 0], uids[:, 1]) / 2.0**64
    b = balance.priorities(np.full(50_000, second), uids[:, 0], uids[:, 1]) / 2.0**64
    counts, _ = np.histogram(a, bins=50, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 100  # chi-squared with 49 degrees of freedom: p < 1e-4
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02


def test_query_keys_follow_the_text_and_the_seed_not_the_row():
    assert (query_hashes(["dog", "cat"], 1) == query_hashes(["cat", "dog"], 1)[::-1]).all()
    assert (query_hashes(["dog"], 1) != query_hashes(["dog"], 2)).all()


def test_windows_only_for_queries_over_the_cap():
    windows = Windows.around(np.array([5, 6, 0, 1000]), 5)
    assert windows.head.tolist() == [1, 3]
    assert (windows.low <= windows.high).all()
    assert np.dtype(PRIORITY).itemsize == 24
