"""The dedup stage against a brute-force reading of its rules, on made-up fetched parts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.beam.runner import parse_beam_options
from pipeline.config import MEMORY_BYTES, Config
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.shuffle import Pieces
from pipeline.engine.sorted_rows import Fewer
from pipeline.engine.units import Marker, UnitOutput, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.records import FETCHED, Reason, pair_uid
from pipeline.stages.balance.scans import QueryHashes
from pipeline.stages.dedup import steps as stage_of_dedup
from pipeline.stages.dedup.decisions import MAX_CAPTIONS, first_captions
from pipeline.stages.dedup.duplicates import survivor_ranks
from pipeline.stages.dedup.steps import run_dedup
from queries.allowlist import Allowlist, import_allowlist

ROWS_BYTES = MEMORY_BYTES // 2
"""Memory for rows: where each takes a tenth of it, ten are held at a time."""
CAP = 4
DISTANCE = 15
QUALITY = 50


def make_rows(images: list[dict]) -> list[dict]:
    rows = []
    for i, image in enumerate(images):
        url = image.get("url", f"http://example.org/{i}.jpg")
        caption = image.get("caption", f"caption {i}")
        row = dict.fromkeys(FETCHED.names)
        row |= {
            "uid": pair_uid(url, caption),
            "url": url,
            "caption": caption,
            "query_ids": image["queries"],
            "selected_by": image["queries"],
            "status": "success",
            "sha256": hashlib.sha256(image["bytes"].encode()).hexdigest(),
            "pdq": image["pdq"].tobytes(),
            "pdq_quality": image["quality"],
        }
        if image.get("failed"):
            row |= {
                "status": "failed_to_download",
                "reason": "timeout",
                "sha256": None,
                "pdq": None,
                "pdq_quality": None,
            }
        rows.append(row)
    return rows


def distance(a: dict, b: dict) -> int:
    return (int.from_bytes(a["pdq"], "big") ^ int.from_bytes(b["pdq"], "big")).bit_count()


def near(a: dict, b: dict) -> bool:
    good = min(a["pdq_quality"], b["pdq_quality"]) >= QUALITY
    return a["sha256"] == b["sha256"] or (good and distance(a, b) <= DISTANCE)


def oracle(rows: list[dict], seed: int) -> dict[str, str]:
    """Return uid -> survivor, deciding one by one in the order of rank."""
    fetched = [r for r in rows if r["reason"] is None]
    ranks = survivor_ranks(pa.chunked_array([[r["uid"] for r in fetched]], pa.string()), seed) if fetched else []
    survivor: dict[str, str] = {}
    kept: list[dict] = []
    for _, row in sorted(zip(ranks, fetched, strict=True), key=lambda pair: (int(pair[0]), pair[1]["uid"])):
        standing = next((k for k in kept if near(k, row)), None)
        survivor[row["uid"]] = row["uid"] if standing is None else standing["uid"]
        if standing is None:
            kept.append(row)
    return survivor


def run_stage(
    tmp_path: Path, rows: list[dict], parts: int, filters: dict | None = None, **dedup: object
) -> tuple[Workspace, Marker]:
    workspace = Workspace(str(tmp_path / "work"))
    (tmp_path / "queries.txt").write_text("".join(f"query{i}\n" for i in range(6)))
    import_allowlist(str(tmp_path / "queries.txt"), str(tmp_path / "queries.parquet"))
    fetched = {}
    for part in range(parts):
        output = UnitOutput(workspace)
        table = pa.Table.from_pylist(rows[part::parts], FETCHED)
        output.write_table(f"fetched/part-{part:05d}.parquet", table)
        counts = {"inputs": table.num_rows, "kept": table["reason"].null_count}
        fetched[f"part-{part:05d}"] = Marker(f"d{part}", output.files, counts)
    config = Config.model_validate(
        {
            "workspace": "work",
            "seed": 5,
            "allowlist": {"path": "queries.parquet"},
            "sources": [{"kind": "warc", "paths": ["x"]}],
            "fetch": {"network": False, "parts": parts},
            "balance": {"cap": CAP},
            "filters": filters or {},
            "dedup": {"max_distance_bits": DISTANCE, "min_quality": QUALITY, **dedup},
        }
    )
    build = Build(workspace, parse_beam_options([]), Progress(None))
    path = str(tmp_path / "queries.parquet")
    marker = run_dedup(build, config, tmp_path, Allowlist.load(path), QueryHashes(path, 5), fetched, {})
    return workspace, marker


def decisions(workspace: Workspace) -> list[dict]:
    names = sorted(workspace.sizes("dedup/decisions"))
    return [row for name in names for row in workspace.read_table(name).to_pylist()]


def random_images(random: np.random.Generator, count: int) -> list[dict]:
    """Make images, many of them copies of an earlier one: exact, the same hash, a few bits away, or just too far."""
    images: list[dict] = []
    for i in range(count):
        kind = random.choice(["new", "exact", "same", "near", "far"]) if images else "new"
        if kind == "new":
            image = {
                "bytes": f"b{i}",
                "pdq": random.integers(0, 256, 32, np.uint8),
                "quality": int(random.choice([20, 50, 100])),
            }
        else:
            image = dict(images[random.integers(len(images))])
            if kind != "exact":
                image["bytes"] = f"b{i}"
            if kind in ("near", "far"):
                bits = np.unpackbits(image["pdq"])
                flipped = random.choice(256, random.integers(1, 16) if kind == "near" else 17, replace=False)
                bits[flipped] ^= 1
                image["pdq"] = np.packbits(bits)
        image["queries"] = sorted(random.choice(6, random.integers(1, 4), replace=False).tolist())
        image["failed"] = bool(random.random() < 0.1)
        images.append(image)
    return images


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 2**32), st.integers(0, 60), st.integers(1, 3))
def test_decisions_follow_the_rules(tmp_path_factory, seed, count, parts):
    rows = make_rows(random_images(np.random.default_rng(seed), count))
    workspace, marker = run_stage(tmp_path_factory.mktemp("w"), rows, parts)
    found = {row["uid"]: row for row in decisions(workspace)}
    expected = oracle(rows, 5)
    by_uid = {row["uid"]: row for row in rows}

    assert found.keys() == expected.keys()
    unique = [by_uid[uid] for uid, survivor in expected.items() if uid == survivor]
    for uid, survivor in expected.items():
        if uid != survivor:
            assert found[uid]["survivor"] == survivor
            assert found[uid]["reason"] in (Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE)
            if by_uid[uid]["sha256"] == by_uid[survivor]["sha256"]:
                assert found[uid]["reason"] == Reason.EXACT_DUPLICATE
        else:
            assert found[uid]["reason"] in (None, Reason.OVER_FINAL_CAP)
    for query in range(6):
        matching = [row for row in unique if query in row["query_ids"]]
        selecting = [row["uid"] for row in unique if query in found[row["uid"]]["selected_by"]]
        assert len(selecting) == min(CAP, len(matching))
    kept = [uid for uid, row in found.items() if row["reason"] is None]
    assert all(bool(found[uid]["selected_by"]) == (uid in kept) for uid in found)
    for uid in kept:
        told = {by_uid[u]["caption"] for u, survivor in expected.items() if survivor == uid}
        assert found[uid]["captions"][0] == by_uid[uid]["caption"]
        assert set(found[uid]["captions"]) == told
    assert marker.counts["inputs"] == len(expected)
    assert marker.counts["kept"] == len(kept)
    assert sum(n for name, n in marker.counts.items() if name != "inputs") == len(expected)


def test_the_order_and_the_number_of_parts_do_not_matter(tmp_path):
    rows = make_rows(random_images(np.random.default_rng(3), 80))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, _ = run_stage(tmp_path / "a", rows, 1)
    many, _ = run_stage(tmp_path / "b", rows[::-1], 4)
    key = lambda row: row["uid"]  # noqa: E731
    assert sorted(decisions(one), key=key) == sorted(decisions(many), key=key)


def test_sorting_some_parts_at_a_time_changes_nothing(tmp_path, monkeypatch):
    rows = make_rows(random_images(np.random.default_rng(4), 120))
    tables = []
    for row_bytes in (stage_of_dedup._DUPLICATE_BYTES, ROWS_BYTES // 10):
        monkeypatch.setattr(stage_of_dedup, "_DUPLICATE_BYTES", row_bytes)
        folder = tmp_path / str(row_bytes)
        folder.mkdir()
        tables.append(run_stage(folder, rows, 5)[0].read_table("dedup/duplicates.parquet"))
    assert tables[0].num_rows > 20
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[0].sort_by([("part", "ascending"), ("uid", "ascending")]))


def test_units_of_several_parts_and_pieces_decide_the_same(tmp_path, monkeypatch):
    rows = make_rows(random_images(np.random.default_rng(5), 120))
    trees = []
    for most_groups in (1_024, 3):
        monkeypatch.setattr("pipeline.engine.shuffle.MAX_BUCKETS", most_groups)
        if most_groups == 3:  # and buckets in several pieces
            monkeypatch.setattr(stage_of_dedup, "_IMAGE_BYTES", ROWS_BYTES // 7)
            monkeypatch.setattr(stage_of_dedup, "_BANDS_BYTES", ROWS_BYTES // 2)
        folder = tmp_path / str(most_groups)
        folder.mkdir()
        workspace, _ = run_stage(folder, rows, 7)
        trees.append({name: workspace.read_bytes(name) for name in workspace.sizes("dedup")})
    assert len([name for name in trees[0] if "decisions" in name]) == 7
    assert trees[0] == trees[1]


def test_deciding_in_many_buckets_and_rounds_changes_nothing(tmp_path, monkeypatch):
    """Long chains cross the pieces, in their own bucket and in others, so that one round does not decide them."""
    random = np.random.default_rng(6)
    images = random_images(random, 80)
    chain = random.integers(0, 256, 32, np.uint8)
    for link in range(40):
        bits = np.unpackbits(chain)
        bits[random.choice(256, 9, replace=False)] ^= 1
        chain = np.packbits(bits)
        images.append({"bytes": f"link{link}", "pdq": chain, "quality": 100, "queries": [0]})
    rows = make_rows(images)
    tables, rounds = [], []
    settle = stage_of_dedup._Stage._settle
    monkeypatch.setattr(
        stage_of_dedup._Stage, "_settle", lambda *args: rounds.append(settle(*args)[0]) or settle(*args)
    )
    monkeypatch.setattr("pipeline.engine.shuffle.MAX_BUCKETS", 4)
    for edge_bytes in (stage_of_dedup.EDGE_BYTES, ROWS_BYTES // (10 * stage_of_dedup._EDGES_PER_IMAGE)):
        monkeypatch.setattr(stage_of_dedup, "EDGE_BYTES", edge_bytes)
        folder = tmp_path / str(edge_bytes)
        folder.mkdir()
        workspace, _ = run_stage(folder, rows, 3)
        tables.append(workspace.read_table("dedup/duplicates.parquet"))
        assert {row["uid"]: row["survivor"] or row["uid"] for row in decisions(workspace)} == oracle(rows, 5)
    assert tables[0].equals(tables[1])
    assert rounds[0] == 1
    assert rounds[1] > 2


def test_a_set_of_look_alikes_is_settled_in_more_pieces(tmp_path, monkeypatch):
    random = np.random.default_rng(7)
    picture = np.unpackbits(random.integers(0, 256, 32, np.uint8))
    images = []
    for number in range(40):
        bits = picture.copy()
        bits[random.choice(256, 8, replace=False)] ^= 1
        images.append({"bytes": f"b{number}", "pdq": np.packbits(bits), "quality": 100, "queries": [0]})
    rows, tables, pieces = make_rows(images), [], []
    first = stage_of_dedup.SettleFirst
    monkeypatch.setattr(stage_of_dedup, "SettleFirst", lambda *args: pieces.append(args[2].count) or first(*args))
    for edge_bytes in (stage_of_dedup.EDGE_BYTES, ROWS_BYTES // 40):
        monkeypatch.setattr(stage_of_dedup, "EDGE_BYTES", edge_bytes)
        folder = tmp_path / str(edge_bytes)
        folder.mkdir()
        tables.append(run_stage(folder, rows, 3)[0].read_table("dedup/duplicates.parquet"))
    assert tables[0].equals(tables[1])
    assert pieces[0] == 1
    assert pieces[1] > 40 / (40 // stage_of_dedup._EDGES_PER_IMAGE)


def test_limits_are_written_down(tmp_path, monkeypatch):
    bits = np.unpackbits(np.random.default_rng(2).integers(0, 256, 32, np.uint8))
    images = []
    for version in range(12):
        near = bits.copy()
        near[100 + version] ^= 1
        images.append({"bytes": f"b{version}", "pdq": np.packbits(near), "quality": 100, "queries": [0]})
    monkeypatch.setattr("dedup.duplicates._DENSE_ROWS", 2)
    monkeypatch.setattr("dedup.duplicates.MAX_COMPARED", 5)
    monkeypatch.setattr("pipeline.stages.dedup.settle.MAX_BETTER", 3)
    workspace, marker = run_stage(tmp_path, make_rows(images), 2)
    limits = json.loads(workspace.read_bytes("dedup/limits.json"))
    assert limits["images_not_compared_with_all"] > 0
    assert limits["edges_not_kept"] > 0
    assert marker.counts[Reason.NEAR_DUPLICATE] == 11


def test_near_duplicates_can_be_kept(tmp_path):
    rows = make_rows(random_images(np.random.default_rng(4), 60))
    workspace, _ = run_stage(tmp_path, rows, 2, near_duplicates=False)
    reasons = {row["reason"] for row in decisions(workspace)}
    assert Reason.NEAR_DUPLICATE not in reasons
    assert Reason.EXACT_DUPLICATE in reasons


def test_a_placeholder_used_everywhere_keeps_few_captions(tmp_path):
    pdq = np.random.default_rng(0).integers(0, 256, 32, np.uint8)
    rows = make_rows([{"bytes": "same", "pdq": pdq, "quality": 90, "queries": [0]} for _ in range(300)])
    workspace, marker = run_stage(tmp_path, rows, 2)
    (kept,) = [row for row in decisions(workspace) if row["reason"] is None]
    assert len(kept["captions"]) == MAX_CAPTIONS
    assert marker.counts[Reason.EXACT_DUPLICATE] == 299


def test_another_caption_of_a_url_is_no_copy_of_a_file(tmp_path):
    pdq = np.random.default_rng(0).integers(0, 256, 32, np.uint8)
    image = {"bytes": "same", "pdq": pdq, "quality": 90, "queries": [0]}
    one, other = {"url": "http://example.org/one.jpg"}, {"url": "http://example.org/other.jpg"}
    rows = make_rows([image | one, image | one, image | one, image | other, image | other])
    workspace, marker = run_stage(tmp_path, rows, 2)
    assert marker.counts[Reason.OTHER_CAPTION_OF_SAME_IMAGE] == 3
    assert marker.counts[Reason.EXACT_DUPLICATE] == 1
    (kept,) = [row for row in decisions(workspace) if row["reason"] is None]
    assert len(kept["captions"]) == 5
    lost = [row for row in decisions(workspace) if row["reason"] is not None]
    assert {row["survivor"] for row in lost} == {kept["uid"]}


def test_a_picture_with_more_copies_than_fit_in_memory_is_decided_in_cuts(tmp_path, monkeypatch):
    """Copies with other URLs, other captions of one URL, other files of the same look; with and without a limit."""
    random = np.random.default_rng(11)
    images = random_images(random, 60)
    for name, look, files in (("logo", 100, 3), ("small", 10, 5)):  # the second is of too low quality to be compared
        pdq = random.integers(0, 256, 32, np.uint8)
        for copy in range(90):
            url = f"http://example.org/{name}/{copy // 2}"
            image = {"bytes": f"{name}{copy // 2 % files}", "pdq": pdq, "quality": look, "queries": [copy % 6]}
            images.append(image | {"url": url, "caption": f"caption {copy}"})
    rows = make_rows(images)
    trees = []
    for filters in ({}, {"max_urls_per_image": 14}):
        for at_once in (None, 5):
            folder = tmp_path / f"{len(filters)}-{at_once}"
            folder.mkdir()
            with monkeypatch.context() as patched:
                if at_once:
                    patched.setattr(stage_of_dedup._Stage, "pieces", Pieces(2))
                    patched.setattr(stage_of_dedup, "_IMAGE_BYTES", ROWS_BYTES // at_once)
                    patched.setattr(stage_of_dedup, "_CAPTION_BYTES", ROWS_BYTES // at_once)
                workspace, marker = run_stage(folder, rows, 3, filters=filters)
            trees.append({name: workspace.read_bytes(name) for name in workspace.sizes("dedup")})
            assert marker.counts[Reason.OTHER_CAPTION_OF_SAME_IMAGE] >= 40
            assert (Reason.PLACEHOLDER_IMAGE in marker.counts) == bool(filters)
    assert trees[0] == trees[1]
    assert trees[2] == trees[3]
    assert trees[0] != trees[2]


def test_the_first_captions_of_survivors_do_not_depend_on_how_they_are_read():
    random = np.random.default_rng(12)
    rows = [
        {"survivor": f"s{random.integers(3)}", "uid": f"{uid:05d}", "caption": f"caption {random.integers(90)}"}
        for uid in random.permutation(2_000)
    ]
    expected = {}
    for row in sorted(rows, key=lambda row: row["uid"]):
        expected.setdefault(row["survivor"], {}).setdefault(row["caption"], row["uid"])
    whole = pa.Table.from_pylist(rows)
    first = first_captions(whole)
    for survivor, captions in expected.items():
        of = first.filter(pa.compute.equal(first["survivor"], survivor))
        assert dict(zip(of["caption"].to_pylist(), of["uid"].to_pylist(), strict=True)) == dict(
            list(captions.items())[:MAX_CAPTIONS]
        )
    some = (whole.slice(start, 100) for start in range(0, 2_000, 100))
    assert first_captions(Fewer(300, first_captions).read(some, whole.schema)).equals(first)


def test_no_image_at_all(tmp_path):
    pdq = np.zeros(32, np.uint8)
    rows = make_rows([{"bytes": "x", "pdq": pdq, "quality": 90, "queries": [0], "failed": True}] * 1)
    workspace, marker = run_stage(tmp_path, rows, 2)
    assert decisions(workspace) == []
    assert marker.counts["inputs"] == marker.counts["kept"] == 0
    assert read_markers(workspace, "dedup/group") == {}  # scratch is gone


def test_a_file_of_too_many_urls_goes_from_all_of_them(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    images = []
    for name, urls in (("logo", 4), ("photo", 3), ("other", 1)):
        look = {"bytes": name, "pdq": random.integers(0, 256, 32, np.uint8), "quality": 100, "queries": [urls]}
        for url in range(urls):
            for text in range(2):  # two captions of a URL are one URL
                images.append(look | {"url": f"http://example.org/{name}/{url}", "caption": f"caption {text}"})
    rows = make_rows(images)
    workspace, marker = run_stage(tmp_path, rows, 3, filters={"max_urls_per_image": 3})
    found = {row["uid"]: row for row in decisions(workspace)}
    by_name = {name: [found[row["uid"]] for row in rows if f"/{name}/" in row["url"]] for name in ("logo", "photo")}
    assert {row["reason"] for row in by_name["logo"]} == {Reason.PLACEHOLDER_IMAGE}
    assert {row["survivor"] for row in by_name["logo"]} == {None}
    assert sum(row["reason"] is None for row in by_name["photo"]) == 1
    assert marker.counts[Reason.PLACEHOLDER_IMAGE] == 8
    assert marker.counts["kept"] == 2
    (tmp_path / "off").mkdir()
    untouched, _ = run_stage(tmp_path / "off", rows, 3)
    assert not any(row["reason"] == Reason.PLACEHOLDER_IMAGE for row in decisions(untouched))
