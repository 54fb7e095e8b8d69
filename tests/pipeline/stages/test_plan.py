"""The plan against a brute-force reading: unique uids, at most cap x slack per query, all pairs of a URL together."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.beam.runner import parse_beam_options
from pipeline.config import Config
from pipeline.config.filters import FiltersConfig
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, UnitOutput
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.filters.families import band_rows, word_set_keys
from pipeline.records import PAIRS, PLAN, Reason, pair_uid
from pipeline.stages.balance.exact import priorities, query_hashes, uid_numbers
from pipeline.stages.balance.ranking import RANDOM, Ranking
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.caption_families import PAIR_BYTES, over_family_cap
from pipeline.stages.plan import part_names, run_plan
from pipeline.stages.plan_candidates import drop_repeats, url_hashes
from pipeline.stages.plan_parts import CANDIDATE_BYTES, candidate_parts, plan_parts
from queries.allowlist import Allowlist, import_allowlist

SEED = 9
QUERIES = [f"query{i}" for i in range(8)]


def make_pairs(count: int, seed: int = 0) -> list[dict]:
    """Make pairs with a heavy head, several captions per URL, and repeats from other pages."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        url, caption = f"http://h{i % 7}.example/{random.integers(count // 2)}.jpg", f"caption {i % 3}"
        queries = {0} if random.random() < 0.8 else set()
        queries |= set(
            random.choice(8, random.integers(0 if queries else 1, 3), p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.01, 0.01, 0])
        )
        rows.append(
            {
                "uid": pair_uid(url, caption),
                "url": url,
                "caption": caption,
                "text_field": "alt",
                "page_url": f"http://p.example/{random.integers(5)}",
                "source": f"s{i % 2}",
                "language": "en",
                "query_ids": [],
            }
        )
        # the same pair matches the same queries wherever it is met: its text decides
        first = next((r for r in rows[:-1] if r["uid"] == rows[-1]["uid"]), None)
        rows[-1]["query_ids"] = first["query_ids"] if first else sorted(int(q) for q in queries)
    return rows


def run(
    tmp_path: Path,
    files: list[list[dict]],
    *,
    cap: int,
    slack: float = 1.5,
    parts: int | None = 3,
    beam: tuple = (),
    fetch: dict | None = None,
    memory_bytes: int = 2 << 30,
    balance: dict | None = None,
    **filters,
):
    tmp_path.mkdir(exist_ok=True)
    workspace = Workspace(str(tmp_path / "work"))
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES))
    path = str(tmp_path / "queries.parquet")
    import_allowlist(str(tmp_path / "queries.txt"), path)
    pairs = {}
    for i, rows in enumerate(files):
        output = UnitOutput(workspace)
        output.write_table(f"pairs/{i}.parquet", pa.Table.from_pylist(rows, PAIRS))
        pairs[str(i)] = Marker(str(i), output.files, {"inputs": len(rows), "kept": len(rows)})
    config = Config.model_validate(
        {
            "workspace": "work",
            "seed": SEED,
            "allowlist": {"path": "queries.parquet"},
            "sources": [{"kind": "url-table", "paths": ["x"], "keep": ["similarity"]}],
            "fetch": {"network": False} | ({} if parts is None else {"parts": parts}) | (fetch or {}),
            "balance": {"cap": cap, "slack": slack} | (balance or {}),
            "filters": filters,
        }
    )
    build = Build(workspace, parse_beam_options(list(beam)), Progress(None), memory_bytes=memory_bytes)
    marker = run_plan(build, config, Allowlist.load(path), QueryHashes(path, SEED), pairs)
    tables = [workspace.read_table(name) for name in part_names(marker)]
    return workspace, marker, tables


def oracle(rows: list[dict], cap: int, ranking: Ranking = RANDOM) -> dict[str, list[int]]:
    unique = {row["uid"]: row for row in rows}
    keys = query_hashes(QUERIES, SEED)
    selected = defaultdict(list)
    for query in range(len(QUERIES)):
        uids = [uid for uid, row in unique.items() if query in row["query_ids"]]
        high, low = uid_numbers(pa.array(uids, pa.string()))
        order = priorities(np.full(len(uids), keys[query]), high, low)
        if ranking.needs_scores:
            order = ranking.priorities(order, np.array([unique[uid]["score"] for uid in uids], np.float32))
        for _, uid in sorted(zip(order.tolist(), uids, strict=True))[:cap]:
            selected[uid].append(query)
    return dict(selected)


@pytest.mark.parametrize("cap", [1, 20, 1000])
def test_the_plan_is_what_the_rules_say(tmp_path, cap):
    rows = make_pairs(400)
    workspace, marker, tables = run(tmp_path, [rows[:150], rows[150:151], [], rows[151:]], cap=cap)
    planned = [row for table in tables for row in table.to_pylist()]
    expected = oracle(rows, int(np.ceil(cap * 1.5)))
    assert {row["uid"]: row["selected_by"] for row in planned} == expected
    assert Counter(row["uid"] for row in planned).most_common(1)[0][1] == 1
    assert all(table.schema.equals(PLAN) for table in tables)
    homes = defaultdict(set)
    for number, table in enumerate(tables):
        for url in table["url"].to_pylist():
            homes[url].add(number)
    assert all(len(parts) == 1 for parts in homes.values())
    unique = len({row["uid"] for row in rows})
    assert marker.counts["inputs"] == 400
    assert marker.counts[Reason.DUPLICATE_PAIR] == 400 - unique
    assert marker.counts["kept"] + marker.counts.get(Reason.OVER_CAP, 0) == unique
    balance = workspace.read_table("plan/balance.parquet")
    found = Counter(q for row in {r["uid"]: r for r in rows}.values() for q in row["query_ids"])
    assert balance["matched"].to_pylist() == [found[q] for q in range(len(QUERIES))]


@pytest.mark.parametrize("order", ["best", "weighted"])
@pytest.mark.parametrize("parts", [3, None])
def test_a_query_takes_its_best_pairs_or_samples_by_the_score_of_the_sources(tmp_path, order, parts):
    rows, scores = [], {}
    for row in make_pairs(400):
        known = int(row["uid"][:2], 16) < 200
        scores[row["uid"]] = round(int(row["uid"][2:6], 16) / 65_536, 2) if known else math.nan
        extra = json.dumps({"similarity": scores[row["uid"]]}) if known else None
        rows.append(row | {"extra": extra, "score": scores[row["uid"]]})
    keys = {"score": "similarity", "order": order, "temperature": 0.1}
    files = [rows[:150], rows[150:151], [], rows[151:]]
    _, marker, tables = run(tmp_path, files, cap=20, parts=parts, balance=keys)
    planned = {row["uid"]: row["selected_by"] for table in tables for row in table.to_pylist()}
    assert planned == oracle(rows, 30, Ranking(order, 0.1, "similarity"))
    assert planned != oracle(rows, 30)
    assert max(Counter(query for queries in planned.values() for query in queries).values()) == 30
    assert marker.counts["kept"] == len(planned)
    if order == "best":  # as a person would read it
        head = {row["uid"]: row["score"] for row in rows if 0 in row["query_ids"]}
        taken = sorted((head[uid] for uid, queries in planned.items() if 0 in queries), reverse=True)
        assert taken == sorted((s for s in head.values() if not math.isnan(s)), reverse=True)[:30]


def limited_oracle(rows: list[dict], cap: int, of_host: Callable[[str], int | None], ranking: Ranking) -> dict:
    """Balance by query, then by host, until no host has too many pairs; hosts that were limited get no other pairs."""
    left = {row["uid"]: row for row in rows}
    while True:
        selected = oracle(list(left.values()), cap, ranking)
        hosts = defaultdict(list)
        for uid in selected:
            hosts[left[uid]["url"].split("/")[2]].append(uid)
        over = {host for host, uids in hosts.items() if (limit := of_host(host)) is not None and len(uids) > limit}
        if not over:
            return selected
        kept = set()
        for host in over:
            high, low = uid_numbers(pa.array(hosts[host], pa.string()))
            order = priorities(np.full(len(high), query_hashes([host], SEED)[0]), high, low)
            order = ranking.priorities(order, np.array([left[uid]["score"] for uid in hosts[host]], np.float32))
            kept.update(uid for _, uid in sorted(zip(order.tolist(), hosts[host], strict=True))[: of_host(host)])
        left = {uid: row for uid, row in left.items() if uid in kept or row["url"].split("/")[2] not in over}


@pytest.mark.parametrize(
    ("cap", "most", "order"),
    [(20, 12, "random"), (20, 12, "best"), (20, 12, "weighted"), (1000, 30, "best"), (40, 1, "weighted")],
)
def test_a_host_keeps_its_best_pairs_where_queries_take_the_best(tmp_path, cap, most, order):
    rows = []
    for row in make_pairs(400):
        known = int(row["uid"][:2], 16) < 200
        score = round(int(row["uid"][2:6], 16) / 65_536, 2) if known else math.nan
        rows.append(row | {"extra": json.dumps({"similarity": score}) if known else None, "score": score})
    keys = {} if order == "random" else {"score": "similarity", "order": order, "temperature": 0.1}
    ranking = RANDOM if order == "random" else Ranking(order, 0.1, "similarity")
    budgets = {"max_pairs_per_host": most, "hosts": [{"match": "h3.example", "max_pairs": 7}]}
    limit = {"h3.example": 7}
    expected = limited_oracle(rows, math.ceil(cap * 1.5), lambda host: limit.get(host, most), ranking)
    _, marker, tables = run(tmp_path / "a", [rows[:150], [], rows[150:]], cap=cap, balance=keys, fetch=budgets)
    planned = {row["uid"]: row for table in tables for row in table.to_pylist()}
    assert {uid: row["selected_by"] for uid, row in planned.items()} == expected
    hosts = Counter(row["url"].split("/")[2] for row in planned.values())
    assert all(count <= limit.get(host, most) for host, count in hosts.items())
    unique = len({row["uid"] for row in rows})
    over_host, over_query = marker.counts[Reason.OVER_HOST_CAP], marker.counts.get(Reason.OVER_CAP, 0)
    assert over_host > 0
    assert len(planned) + over_host + over_query == unique
    if order == "best" and cap == 1000:  # every pair is selected, so a host keeps its best, as a person would read it
        scores = {row["uid"]: row["score"] for row in rows if row["url"].startswith("http://h1.") and row["query_ids"]}
        taken = sorted((s for uid, s in scores.items() if uid in planned), reverse=True)
        assert taken == sorted((s for s in scores.values() if not math.isnan(s)), reverse=True)[:most]
    _, same, _ = run(tmp_path / "b", [rows[::-1][:100], rows[::-1][100:]], cap=cap, balance=keys, fetch=budgets)
    assert same.outputs == marker.outputs


@pytest.mark.parametrize("cap", [1, 20, 1000])
@pytest.mark.parametrize("budgets", [{}, {"max_pairs_per_host": 30}])
def test_without_a_number_of_parts_the_plan_is_that_of_the_number_its_size_gives(tmp_path, monkeypatch, cap, budgets):
    monkeypatch.setattr("pipeline.stages.plan_parts.PAIRS_PER_PART", 8)
    rows = make_pairs(400)
    files = [rows[:150], rows[150:151], [], rows[151:]]
    workspace, marker, tables = run(tmp_path / "by size", files, cap=cap, parts=None, fetch=budgets)
    assert len(tables) == plan_parts(marker.counts["kept"])
    stated, same, _ = run(tmp_path / "stated", files, cap=cap, parts=len(tables), fetch=budgets)
    assert marker.outputs == same.outputs
    assert marker.counts == same.counts
    assert workspace.sizes("plan") == stated.sizes("plan")


@pytest.mark.parametrize("parts", [3, None])
def test_candidates_that_do_not_fit_in_memory_give_the_same_plan(tmp_path, monkeypatch, parts):
    rows = make_pairs(400)
    files = [rows[:150], rows[150:151], [], rows[151:]]
    _, marker, _ = run(tmp_path / "whole", files, cap=20, parts=parts, max_images_per_caption=60)
    monkeypatch.setattr("pipeline.engine.shuffle.MAX_BUCKETS", 5)
    held = counted_rows(monkeypatch)
    small = {"max_images_per_caption": 60, "memory_bytes": 2 * 7 * CANDIDATE_BYTES}
    _, same, _ = run(tmp_path / "pieces", files, cap=20, parts=parts, **small)
    assert same.outputs == marker.outputs
    assert same.counts == marker.counts
    assert len(held) >= 400 / 7


def counted_rows(monkeypatch) -> list[int]:
    """Return a list to which every sorting of candidates adds their number."""
    held: list[int] = []
    counting = lambda rows: held.append(rows.num_rows) or drop_repeats(rows)  # noqa: E731
    monkeypatch.setattr("pipeline.stages.plan_candidates.drop_repeats", counting)
    return held


@pytest.mark.parametrize("parts", [1, 3])
def test_a_pair_on_many_pages_takes_no_more_memory_than_others(tmp_path, monkeypatch, parts):
    """All its rows come to one part, however many parts there are."""
    rows = make_pairs(100)
    repeated = [rows[0] | {"page_url": f"http://p.example/{n % 977}", "source": f"s{n % 3}"} for n in range(3_000)]
    files = [rows, *(repeated[start : start + 100] for start in range(0, 3_000, 100))]
    _, marker, _ = run(tmp_path / "whole", files, cap=20, parts=parts)
    held = counted_rows(monkeypatch)
    monkeypatch.setattr("pipeline.engine.sorted_rows.CHUNK_BYTES", 2_000)
    _, same, _ = run(tmp_path / "pieces", files, cap=20, parts=parts, memory_bytes=2 * 300 * CANDIDATE_BYTES)
    assert max(held) < 700
    assert same.outputs == marker.outputs
    assert same.counts == marker.counts


@pytest.mark.parametrize("candidates", [0, 5_000, 10**6, 5 * 10**9, 292 * 10**9])
@pytest.mark.parametrize("parts", [None, 1, 7, 4_096])
def test_candidates_are_cut_into_pieces_that_fit(candidates, parts):
    number = candidate_parts(candidates, parts, 1_000_000)
    assert candidates / number <= 1_000_000
    assert number % (parts or 1) == 0
    assert number <= 2**19


@pytest.mark.parametrize(
    ("planned", "parts"), [(0, 1), (10_000, 1), (10_001, 2), (400_000_000, 65_536), (10**12, 2**19)]
)
def test_a_part_has_5000_to_10000_pairs(planned, parts):
    assert plan_parts(planned) == parts


def test_parts_are_in_the_order_of_their_numbers():
    outputs = {f"plan/part-{number:05d}.parquet": FileFacts(0, "") for number in (100_001, 0, 99_999, 10_000, 100_000)}
    numbers = [
        int(name[10:-8]) for name in part_names(Marker("", outputs | {"plan/hosts.parquet": FileFacts(0, "")}, {}))
    ]
    assert numbers == [0, 10_000, 99_999, 100_000, 100_001]


@pytest.mark.parametrize("limit", [1, 60, 1000])
def test_captions_of_too_many_images_are_left_out_before_the_balance(tmp_path, limit):
    rows = [row | {"caption": f"caption {min(int(row['url'][-5]), 3)}"} for row in make_pairs(400)]
    rows = [row | {"uid": pair_uid(row["url"], row["caption"]), "query_ids": [0]} for row in rows]
    images = defaultdict(set)
    for row in rows:
        images[row["caption"]].add(row["url"])
    left = [row for row in rows if len(images[row["caption"]]) <= limit]
    assert limit != 60 or 0 < len(left) < 400
    files = [rows[:150], rows[150:151], [], rows[151:]]
    _, marker, tables = run(tmp_path, files, cap=20, max_images_per_caption=limit)
    planned = {row["uid"]: row["selected_by"] for table in tables for row in table.to_pylist()}
    assert planned == oracle(left, 30)
    frequent = len({row["uid"] for row in rows}) - len({row["uid"] for row in left})
    assert marker.counts.get(Reason.FREQUENT_CAPTION, 0) == frequent
    over = marker.counts.get(Reason.OVER_CAP, 0)
    assert marker.counts["inputs"] == 400
    assert marker.counts["kept"] + over + frequent + marker.counts[Reason.DUPLICATE_PAIR] == 400


COLOURS = ("blue", "red", "green", "black", "white")


def template_pairs(count: int) -> list[dict]:
    """Make pairs of shops whose captions differ in a number, a colour or the case, of others, and of short ones."""
    random = np.random.default_rng(5)
    shops = [" ".join(random.choice([f"w{chr(97 + i)}" for i in range(26)], 9, replace=False)) for _ in range(6)]
    rows = []
    for i, row in enumerate(make_pairs(count)):
        kind = random.integers(10)
        text = f"{shops[kind % 6]} {i}, {random.choice(COLOURS)}" if kind < 8 else f"photo {chr(97 + i % 9)}"
        caption = text.upper() if i % 3 else text
        again = rows[-1] if i % 10 == 9 else {"url": row["url"], "caption": caption}
        rows.append(row | {"url": again["url"], "caption": again["caption"]})
        rows[-1]["uid"] = pair_uid(again["url"], again["caption"])
        rows[-1]["query_ids"] = [int(rows[-1]["uid"][0], 16) // 2]
    return rows


def families_of(rows: list[dict], similarity: float) -> dict[str, int]:
    """Return of each uid the family that its caption is in, by comparing all sets of words that share a band."""
    captions = pa.array([row["caption"] for row in rows])
    keys = word_set_keys(captions)
    words = {
        int(key): set(re.findall(r"[^\W\d]+|\d+", re.sub(r"\d+", "0", row["caption"].lower())))
        for key, row in zip(keys, rows, strict=True)
    }
    bands = defaultdict(set)
    for band in band_rows(captions, keys, similarity).to_pylist():
        bands[band["band"]].add(band["key"])
    first = {key: key for key in words}
    for members in bands.values():
        for a in members:
            for b in members:
                if len(words[a] & words[b]) / len(words[a] | words[b]) >= similarity:
                    first[a] = min(first[a], b)
    return {row["uid"]: first[int(key)] for row, key in zip(rows, keys, strict=True)}


@pytest.mark.parametrize(("limit", "similarity"), [(1, 0.7), (7, 0.95), (500, 0.7)])
def test_of_a_family_of_captions_the_cap_is_exact_over_the_pool(tmp_path, monkeypatch, limit, similarity):
    rows = template_pairs(400)
    unique = list({row["uid"]: row for row in rows}.values())
    family = families_of(unique, similarity)
    members = defaultdict(list)
    for row in unique:
        members[family[row["uid"]]].append(row["uid"])
    order = {uid: int(url_hashes([uid], SEED)[0]) for uid in family}
    over = {uid for key, of_it in members.items() if key for uid in sorted(of_it, key=order.__getitem__)[limit:]}
    assert (limit == 500) == (not over)
    table = pa.Table.from_pylist([{name: row[name] for name in ("uid", "caption")} for row in unique])
    filters = FiltersConfig(max_pairs_per_family=limit, family_similarity=similarity)
    is_over = over_family_cap(table, filters, SEED)
    assert set(table["uid"].filter(pa.array(is_over)).to_pylist()) == over
    left = [row for row in rows if row["uid"] not in over]
    keys = {"max_pairs_per_family": limit, "family_similarity": similarity}
    workspace, marker, tables = run(tmp_path / "whole", [rows[:150], [], rows[150:]], cap=20, **keys)
    assert {row["uid"]: row["selected_by"] for table in tables for row in table.to_pylist()} == oracle(left, 30)
    assert marker.counts.get(Reason.NEAR_EQUAL_CAPTION, 0) == len(over)
    assert marker.counts["kept"] + marker.counts.get(Reason.OVER_CAP, 0) == len(unique) - len(over)
    assert workspace.sizes(".wit/plan") == {}

    monkeypatch.setattr("pipeline.engine.shuffle.MAX_BUCKETS", 4)
    files = [rows[::-1][:100], rows[::-1][100:]]
    small = keys | {"memory_bytes": 2 * 30 * PAIR_BYTES}
    _, same, _ = run(tmp_path / "pieces", files, cap=20, **small)
    assert same.outputs == marker.outputs
    assert same.counts == marker.counts


def test_captions_of_too_many_images_do_not_count_for_their_family(tmp_path):
    rows = [
        row | {"caption": f"a shop of {'many' if i % 2 else i} blue shirts"} for i, row in enumerate(make_pairs(60))
    ]
    rows = [row | {"uid": pair_uid(row["url"], row["caption"]), "query_ids": [0]} for row in rows]
    unique = {row["uid"]: row for row in rows}
    others = {uid for uid, row in unique.items() if "many" not in row["caption"]}
    _, marker, tables = run(tmp_path, [rows], cap=100, max_images_per_caption=5, max_pairs_per_family=10)
    assert {uid for table in tables for uid in table["uid"].to_pylist()} <= others
    assert marker.counts[Reason.FREQUENT_CAPTION] == len(unique) - len(others)
    assert marker.counts["kept"] == 10


def test_order_files_and_workers_do_not_matter(tmp_path):
    rows = make_pairs(300, seed=2)
    trees = []
    variants = [([rows], ()), ([rows[::-1][:100], rows[::-1][100:]], ("--direct_runner_bundle_repeat=1",))]
    for i, (files, beam) in enumerate(variants):
        (tmp_path / str(i)).mkdir()
        workspace, _, _ = run(tmp_path / str(i), files, cap=10, beam=beam)
        trees.append({name: workspace.read_bytes(name) for name in workspace.sizes("plan")})
        assert workspace.sizes(".wit/plan") == {}
    assert trees[0] == trees[1]


def test_nothing_matched_gives_empty_parts(tmp_path):
    _, marker, tables = run(tmp_path, [[]], cap=5)
    assert [table.num_rows for table in tables] == [0, 0, 0]
    assert marker.counts["inputs"] == marker.counts["kept"] == 0
