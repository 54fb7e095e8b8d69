"""Commands for a set that has been built: why, diff, merge and the like, on the recorded web."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.recorded_web import caption, image_url, make_project, tree

from pipeline import open_set
from pipeline.cli.main import main
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason, pair_uid
from pipeline.stages import difference, garbage
from pipeline.stages.difference import compare_sets
from pipeline.stages.index import Kind, look_up

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

Rows = dict[str, dict]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("operations"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


@pytest.fixture(scope="module")
def rows(project: Path) -> Rows:
    tables = sorted((project.parent / "work/shards").glob("*.parquet"))
    return {row["uid"]: row for path in tables for row in pq.read_table(path).to_pylist()}


def why(config: Path, wanted: str, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    capsys.readouterr()
    assert main(["why", wanted, "-c", str(config), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_why_tells_the_path_of_every_planned_pair(
    project: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for row in rows.values():
        shown.setdefault(row["reason"] or row["status"], row)
    assert {Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE, Reason.NOT_IN_ARCHIVES, "success"} <= shown.keys()
    for reason, row in shown.items():
        (record,) = why(project, row["uid"], capsys)
        assert (record["pairs.uid"], record["pairs.caption"]) == (row["uid"], row["caption"])
        assert record["shards.reason" if "shards.reason" in record else "fetched.reason"] == row["reason"]
        if reason == "success":
            assert (record["shards.shard"], record["shards.offset"]) == (row["shard"], row["offset"])
        if reason in (Reason.EXACT_DUPLICATE, Reason.NEAR_DUPLICATE):
            assert rows[record["dedup.survivor"]]["url"] == record["dedup.survivor_url"]
            assert record["dedup.distance"].endswith("bits, at most 15 are a duplicate")


def test_why_finds_by_url_by_image_and_by_example(
    project: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = next(row for row in rows.values() if row["status"] == "success")
    of_url = {uid for uid, row in rows.items() if row["url"] == sample["url"]}
    assert of_url <= {record["pairs.uid"] for record in why(project, sample["url"], capsys)}
    same = {uid for uid, row in rows.items() if row["sha256"] == sample["sha256"]}
    assert {record["pairs.uid"] for record in why(project, sample["sha256"], capsys)} == same
    overlap = pq.read_table(project.parent / "work/dedup/overlap/shapes.parquet").to_pylist()
    record = why(project, overlap[0]["eval_id"], capsys)[0]
    assert record["dedup.overlap.shapes"].startswith(f"{overlap[0]['eval_id']} at {overlap[0]['distance']} bits")


def test_why_says_which_queries_had_enough_without_a_pair(
    project: Path, rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    over = [pair_uid(image_url(i), caption(i)) for i in range(120)]
    (record, *_) = [r for uid in over if uid not in rows for r in why_or_none(project, uid, capsys)]
    assert record["plan.reason"] == "over_cap"
    assert "selects 23 of " in record["plan.because"]
    assert "fetched.status" not in record


def why_or_none(config: Path, uid: str, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    try:
        return why(config, uid, capsys)
    except AssertionError:
        return []


def test_why_needs_no_index_and_finds_the_same_without(
    project: Path, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    (tmp_path / "copy/work/.wit/stages/index.json").unlink()
    sample = next(row for row in rows.values() if row["status"] == "success")
    for wanted in (sample["uid"], sample["url"], sample["sha256"]):
        assert why(tmp_path / "copy/wit.toml", wanted, capsys) == why(project, wanted, capsys)


def test_the_index_names_the_file_of_every_pair(project: Path) -> None:
    workspace = Workspace(str(project.parent / "work"))
    for path in sorted((project.parent / "work/pairs").glob("*.parquet")):
        for row in pq.read_table(path, columns=["uid", "url"]).to_pylist():
            assert f"pairs/{path.name}" in (look_up(workspace, Kind.UID, row["uid"]) or [])
            assert f"pairs/{path.name}" in (look_up(workspace, Kind.URL, row["url"]) or [])
    assert look_up(workspace, Kind.SHA256, hashlib.sha256(b"absent").hexdigest()) == []


@pytest.mark.parametrize("wanted", ["0" * 32, "http://nowhere.example/a.jpg", "f" * 64, "no/such/example.png", ""])
def test_why_of_what_is_not_there_is_one_line(project: Path, capsys: pytest.CaptureFixture[str], wanted: str) -> None:
    assert main(["why", wanted, "-c", str(project)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_gc_finds_exactly_what_nobody_owns(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    config, work = tmp_path / "copy/wit.toml", tmp_path / "copy/work"
    whole = tree(work)
    assert main(["gc", "-c", str(config)]) == 0
    assert capsys.readouterr().out == "0 files, 0 bytes can be removed\n"
    left = {"fetched/part-00099.tar": 5, "dedup/decisions/part-00099.parquet": 6, ".wit/tmp/0123": 7}
    left |= {"consent/part-00099.parquet": 8, "shards/00099.tar": 9, "searched/openverse/cd.parquet": 1}
    kept = {".wit/earlier/web-1/part-00000.1.tar": 3, "notes.txt": 4, "shards/notes.md": 2, "mine/a.parquet": 5}
    kept |= {"evals/shapes/results/m.parquet": 6, "searched/openverse/ab.parquet": 7}
    kept |= {"searched/openverse/ab/abcd.json": 2, "searched/openverse/budget.json": 2, ".wit/crawl/web-1/a.tar": 4}
    for name, size in {**left, **kept}.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(bytes(size))
    assert main(["gc", "-c", str(config)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in left)
    assert "6 files, 36 bytes can be removed: add --remove" in out
    assert ".wit/earlier/web-1/part-00000.1.tar" in out
    assert ".wit/crawl/web-1/a.tar" in out
    assert main(["gc", "-c", str(config), "--remove"]) == 0
    assert "removed 6 files, 36 bytes" in capsys.readouterr().out
    assert not any((work / name).exists() for name in left)
    for name in kept:
        (work / name).unlink()
    assert tree(work) == whole


def test_gc_knows_every_folder_of_the_layout(project: Path, tmp_path: Path) -> None:
    layout = (ROOT / "docs/architecture.md").read_text().partition("## The workspace")[2].split("```")[1]
    listed = {line.partition("/")[0] for line in layout.splitlines() if line and not line.startswith(" ")}
    assert listed == {*garbage.FOLDERS, *garbage.FOLDERS_OF_USERS}
    assert {path.name for path in (project.parent / "work").iterdir()} <= listed
    work = Workspace(str(tmp_path))
    names = {f"{folder}/a/stray.parquet" for folder in garbage.FOLDERS}
    for name in names:
        with work.create(name) as out:
            out.write(b"x")
    assert {stray.name for stray in garbage.find_strays(work)} == names


def test_diff_says_what_went_and_why(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    config, old = tmp_path / "copy/wit.toml", str(project.parent / "work/shards")
    new = str(tmp_path / "copy/work/shards")
    assert main(["diff", old, new, "--json"]) == 0
    same = json.loads(capsys.readouterr().out)
    assert (same["came"], same["went"], same["recipe"]) == ({}, {}, {})
    assert same["both"] == same["first"] == same["second"] > 0

    config.write_text(config.read_text().replace("cap = 15", "cap = 5"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["diff", old, new, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    samples = []
    for folder in (old, new):
        table = pa.concat_tables(
            [pq.read_table(path, columns=["uid", "status"]) for path in Path(folder).glob("*.parquet")]
        )
        samples.append(set(table.filter(pc.equal(table["status"], "success"))["uid"].to_pylist()))
    assert (found["first"], found["second"]) == tuple(map(len, samples))
    assert sum(found["went"].values()) == len(samples[0] - samples[1])
    assert sum(found["came"].values()) == len(samples[1] - samples[0])
    assert {"not_planned", "over_final_cap"} >= found["went"].keys()
    assert found["recipe"] == {"balance.cap": [15, 5]}
    assert main(["diff", old, new]) == 0
    assert "recipe: balance.cap was 15, is 5" in capsys.readouterr().out


def test_diff_in_ranges_is_the_same(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project.parent / "work/shards", tmp_path / "b")
    for name in ("00001.parquet", "00003.parquet"):
        table = pq.read_table(tmp_path / "b" / name)
        pq.write_table(table.slice(0, table.num_rows // 2), tmp_path / "b" / name)
    folders = str(project.parent / "work/shards"), str(tmp_path / "b")
    whole = compare_sets(*folders)
    monkeypatch.setattr(difference, "_SAMPLES_AT_ONCE", 7)
    parts = compare_sets(*folders)
    assert whole.went.total() > 0
    assert (parts.first, parts.second, parts.both, parts.came, parts.went) == (
        whole.first, whole.second, whole.both, whole.came, whole.went,
    )  # fmt: skip


def test_a_folder_that_is_no_set_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def annotate(config: Path, *arguments: object) -> int:
    return main(["annotate", *map(str, arguments), "-c", str(config), "--quiet"])


def test_annotations_are_joined_and_leave_with_their_pairs(
    project: Path, rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    config, work = tmp_path / "copy/wit.toml", tmp_path / "copy/work"
    before = tree(work, "shards", "fetched", "dedup")
    samples = sorted(uid for uid, row in rows.items() if row["status"] == "success")
    others = sorted(uid for uid, row in rows.items() if row["status"] != "success")[:5]
    scores = {uid: i / 7 for i, uid in enumerate([*samples[::2], *others])}
    for i in range(2):  # two tables, in no order
        uids = sorted(scores, key=lambda uid: uid[::-1])[i::2]
        table = pa.table({"score": [scores[u] for u in uids], "uid": uids, "blip": [[f"a {u[:3]}"] for u in uids]})
        pq.write_table(table, tmp_path / f"scores-{i}.parquet")
    assert annotate(config, "aesthetic", tmp_path / "scores-*.parquet") == 0
    told = f"{len(samples[::2]):,} of {len(samples):,} samples"
    assert told in capsys.readouterr().out
    assert tree(work, "shards", "fetched", "dedup") == before
    built = open_set(work)
    assert built.annotations == ("aesthetic",)
    joined = built.samples(["aesthetic.score", "uid", "aesthetic.blip"]).to_pylist()
    assert {row["uid"] for row in joined} == set(samples)
    for row in joined:
        assert row["aesthetic.score"] == scores.get(row["uid"])
        assert row["aesthetic.blip"] == ([f"a {row['uid'][:3]}"] if row["uid"] in scores else None)
    assert built.samples(["uid"]).column_names == ["uid"]
    finished = tree(work)
    assert annotate(config, "aesthetic", tmp_path / "scores-*.parquet") == 0  # nothing to do
    assert tree(work) == finished
    assert main(["gc", "-c", str(config)]) == 0
    assert "0 files, 0 bytes can be removed" in capsys.readouterr().out

    (tmp_path / "request.txt").write_text(f"uid:{samples[0]}\n")
    assert main(["takedown", str(tmp_path / "request.txt"), "-c", str(config), "--quiet"]) == 0
    assert samples[0] not in open_set(work).annotation("aesthetic")["uid"].to_pylist()
    assert main(["verify", "-c", str(config)]) == 0
    assert "Annotations, joined later by uid: aesthetic" in (work / "report/data_card.md").read_text()


@pytest.mark.parametrize(
    ("name", "columns", "code", "said"),
    [
        ("Bad Name", {"uid": ["0" * 32], "x": [1]}, 2, "lower-case"),
        ("a", {"x": [1]}, 2, "no column 'uid'"),
        ("a", {"uid": ["0" * 32]}, 2, "no column beside uid"),
        ("a", {"uid": ["0" * 32], "caption": ["x"]}, 2, "rename it"),
        ("a", {"uid": [1], "x": [1]}, 2, "not string"),
        ("a", {"uid": ["zz"], "x": [1]}, 1, "is not a uid"),
        ("a", {"uid": ["0" * 32, "0" * 32], "x": [1, 2]}, 1, "more than one row"),
    ],
)
def test_what_cannot_be_annotated_is_one_line(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, columns: dict, code: int, said: str
) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    assert annotate(tmp_path / "copy/wit.toml", name, tmp_path / "table.parquet") == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
