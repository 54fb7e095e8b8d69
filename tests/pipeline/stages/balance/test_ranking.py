"""Orders by score against sorting; the sampling law of weights; the cap as hard as with random priorities."""

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.beam.options import parse_beam_options
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import UnitOutput
from pipeline.engine.workspace import Workspace
from pipeline.records import pair_uid
from pipeline.stages.balance import scans
from pipeline.stages.balance.exact import Matches, query_hashes
from pipeline.stages.balance.ranking import Ranking, kept_numbers, log
from pipeline.stages.balance.scans import QueryHashes, SelectQueries, find_balance
from queries.allowlist import Allowlist, import_allowlist

SCORES = st.one_of(st.floats(-1, 1, width=32), st.just(math.nan), st.just(-0.0))
QUERIES = [f"query{i}" for i in range(4)]


@given(st.lists(SCORES, min_size=1, max_size=30), st.integers(0, 99))
def test_the_best_come_first_and_those_without_a_score_last(values: list[float], seed: int) -> None:
    scores = np.array(values, np.float32)
    hashes = np.random.default_rng(seed).integers(0, 1 << 63, len(scores)).astype(np.uint64)
    order = np.argsort(Ranking("best").priorities(hashes, scores), kind="stable")
    expected = sorted(range(len(scores)), key=lambda i: math.inf if math.isnan(scores[i]) else -scores[i])
    ranked = [scores[i] for i in order]
    assert np.array_equal(ranked, [scores[i] for i in expected], equal_nan=True)
    for value in {float(s) for s in scores if not math.isnan(s)}:
        tied = [i for i in order if scores[i] == value]
        assert tied == sorted(tied, key=lambda i: (hashes[i] >> np.uint64(32), i))


def test_numbers_of_sources_are_read_as_they_are_written() -> None:
    extras = ['{"s":0.25,"t":1}', '{"s":"0.5"}', '{"s":true}', '{"s":[1]}', '{"t":1}', None, '{"s":"x"}', '{"s":-1e60}']
    found = kept_numbers(extras, "s").tolist()
    assert found[:2] + found[7:] == [0.25, 0.5, -math.inf]
    assert all(map(math.isnan, found[2:7]))


@given(st.floats(2.0**-60, 2.0**60))
def test_logarithms_are_near_enough(x: float) -> None:
    assert log(np.array([x]))[0] == pytest.approx(math.log(x), abs=3e-7)


def test_a_weighted_sample_has_the_law_of_sequential_draws() -> None:
    """Draw 2 of 4 with weights 1, 2, 3, 4: the first by weight, the second by weight among the rest."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    ranking = Ranking("weighted", temperature=0.5)
    scores = (0.5 * np.log(weights)).astype(np.float32)
    expected = {}
    for i in range(4):
        for j in range(4):
            if i != j:
                pair = frozenset((i, j))
                p = weights[i] / 10 * weights[j] / (10 - weights[i])
                expected[pair] = expected.get(pair, 0) + p
    draws = 40_000
    hashes = np.random.default_rng(3).integers(0, 1 << 64, (draws, 4), np.uint64, endpoint=False)
    keys = ranking.priorities(hashes.ravel(), np.tile(scores, draws)).reshape(draws, 4)
    found = Counter(frozenset(row) for row in np.argsort(keys, axis=1)[:, :2].tolist())
    for pair, p in expected.items():
        assert abs(found[pair] - draws * p) < 5 * math.sqrt(draws * p * (1 - p)), pair


@pytest.mark.parametrize("by", ["best", "weighted"])
@pytest.mark.parametrize("few", [1_024, 3])
def test_scans_select_what_sorting_does_and_never_more_than_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, few: int
) -> None:
    monkeypatch.setattr(scans, "_FEW_KEYS", few)
    random = np.random.default_rng(7)
    lists = [sorted({0, *random.choice(4, random.integers(0, 3)).tolist()}) for _ in range(300)]
    scores = np.round(random.normal(0.3, 0.05, 300), 2).astype(np.float32)  # many are equal
    uids = [pair_uid("http://example.org/", str(i)) for i in range(300)]
    pairs = pa.table(
        {"uid": uids, "query_ids": pa.array(lists, pa.list_(pa.int32())), "score": pa.array(scores, mask=scores > 0.42)}
    )
    (tmp_path / "words.txt").write_text("\n".join(QUERIES))
    path = str(tmp_path / "queries.parquet")
    import_allowlist(str(tmp_path / "words.txt"), path)
    workspace = Workspace(str(tmp_path / "work"))
    output = UnitOutput(workspace)
    for i in range(3):
        output.write_table(f"part-{i}.parquet", pairs.slice(100 * i, 100))
    build = Build(workspace, parse_beam_options([]), Progress(None))
    allowlist, ranking, cap = Allowlist.load(path), Ranking(by, 0.05), 40
    keys = QueryHashes(path, 5, ranking)
    files = [f"part-{i}.parquet" for i in range(3)]
    balance = find_balance(build, "test", files, allowlist, keys, cap=cap, inputs="x")
    selected = SelectQueries(balance.thresholds, keys.load(), ranking).select(pairs).to_pylist()

    matches = Matches.of(
        pairs["uid"],
        pairs["query_ids"],
        query_hashes(allowlist.queries, 5),
        ranking,
        pairs["score"].to_numpy().astype(np.float32),
    )
    expected = defaultdict(set)
    for query in range(4):
        rows = [
            (*key.tolist(), row)
            for key, row, q in zip(matches.key, matches.row.tolist(), matches.query.tolist(), strict=True)
            if q == query
        ]
        for *_, row in sorted(rows)[:cap]:
            expected[row].add(query)
    assert [set(found) for found in selected] == [expected[row] for row in range(300)]
    assert max(Counter(query for found in selected for query in found).values()) == cap
    if by == "best":
        worst = min(scores[row] for row in range(300) if 0 in expected[row] and scores[row] <= 0.42)
        best_left = max(scores[row] for row in range(300) if 0 not in expected[row] and scores[row] <= 0.42)
        assert best_left <= worst
