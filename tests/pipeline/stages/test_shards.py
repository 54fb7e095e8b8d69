"""Shards as their readers see them: webdataset, tarfile, pyarrow."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipeline.account import Account, StageAccount
from pipeline.beam.runner import parse_beam_options
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, UnitOutput, read_markers
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.block_files import BlockFiles, find_takedowns
from pipeline.records import DECISIONS, FETCHED, SHARD, Reason, pair_uid
from pipeline.shards.manifest import read_manifest
from pipeline.shards.tar import TarWriter
from pipeline.stages import shards
from pipeline.stages.dedup.settle import DUPLICATES
from pipeline.stages.listed import run_listed
from pipeline.stages.shards import run_shards, write_manifest
from pipeline.stages.takedown import keep_request, read_request

OUTCOMES = [None, None, "timeout", "broken_image", Reason.NEAR_DUPLICATE, Reason.OVER_FINAL_CAP]


def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def fetched_part(workspace: Workspace, part: int, shade: int) -> tuple[Marker, dict, list[dict]]:
    """Write one fetched part with every kind of outcome and its decisions."""
    rows, decisions = [], []
    for i, outcome in enumerate(OUTCOMES):
        url, caption = f"http://e.example/{part}/{i}.jpg", f"größe <{i}> of {part}"
        row = dict.fromkeys(FETCHED.names) | {
            "uid": pair_uid(url, caption),
            "url": url,
            "caption": caption,
            "query_ids": [1, 2],
            "selected_by": [2],
        }
        failed = outcome in ("timeout", "broken_image")
        status = {"timeout": "failed_to_download", "broken_image": "failed_to_resize"}.get(outcome, "success")
        row |= {"status": status, "reason": outcome if failed else None}
        if not failed:
            row |= {"width": 8, "height": 8, "sha256": f"{i:064x}", "pdq": bytes(32), "pdq_quality": 100}
            stays = outcome is None
            decisions.append(
                {
                    "uid": row["uid"],
                    "reason": outcome,
                    "survivor": None,
                    "selected_by": [1] if stays else [],
                    "captions": [caption, "another"] if stays else [],
                }
            )
        rows.append(row)
    output, decided = UnitOutput(workspace), UnitOutput(workspace)
    with output.create(f"fetched/part-{part:05d}.tar") as out, TarWriter(out) as tar:
        for i, row in enumerate(rows):
            if row["reason"] is None:
                tar.add(f"{row['uid']}.jpg", jpeg(shade + i))
    output.write_table(f"fetched/part-{part:05d}.parquet", pa.Table.from_pylist(rows, FETCHED))
    decided.write_table(f"dedup/decisions/part-{part:05d}.parquet", pa.Table.from_pylist(decisions, DECISIONS))
    return Marker("d", output.files, {"inputs": 6, "kept": 4}), decided.files, rows


def make_shards(root, *, shade: int = 0, block_files: BlockFiles | None = None) -> tuple[Workspace, list[list[dict]]]:
    workspace = Workspace(str(root))
    fetched, decided, rows = {}, {}, []
    for part in range(2):
        marker, files, part_rows = fetched_part(workspace, part, shade)
        fetched[f"part-{part:05d}"] = marker
        decided |= files
        rows.append(part_rows)
    build = Build(workspace, parse_beam_options([]), Progress(None))
    decision = Marker("d", decided, {})
    duplicates = UnitOutput(workspace)
    duplicates.write_table("dedup/duplicates.parquet", DUPLICATES.empty_table())
    shards = run_shards(build, fetched, {}, decision, run_listed(build, fetched, decision, block_files or {}, {}))
    write_manifest(build, shards, Account((StageAccount("shards", 4, 4, {}),)), {"seed": 1}, "9.9")
    return workspace, rows


def test_what_a_block_list_names_later_leaves_the_shards_and_is_counted(tmp_path):
    workspace, rows = make_shards(tmp_path / "set")
    listed, kept = rows[0][0]["url"], [row["uid"] for part in rows for row in part[:2]]
    (tmp_path / "urls.txt").write_text(f"# taken back\n{listed}\n")
    make_shards(tmp_path / "set", block_files={"urls": [str(tmp_path / "urls.txt")]})
    with tarfile.open(tmp_path / "set/shards/00000.tar") as tar:
        assert {name.partition(".")[0] for name in tar.getnames()} == {kept[1]}
    table = {row["uid"]: row for row in workspace.read_table("shards/00000.parquet").to_pylist()}
    dropped = table[kept[0]]
    assert (dropped["status"], dropped["reason"], dropped["refused_by"]) == ("dropped", "opted_out", "block-list")
    assert workspace.read_json("shards/00000_stats.json")["refused_by"]["block-list"] == 1
    counts = [marker.counts for marker in read_markers(workspace, "shards").values()]
    assert [counts[0].get(name) for name in ("inputs", "kept", "opted_out")] == [2, 1, 1]
    assert counts[1] == {"inputs": 2, "kept": 2}


def test_every_reader_sees_the_kept_pairs_and_only_those(tmp_path):
    _, rows = make_shards(tmp_path)
    kept = [row["uid"] for part in rows for row in part[:2]]
    urls = [f"file:{tmp_path}/shards/{i:05d}.tar" for i in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == kept
    assert [sample["txt"] for sample in samples] == [row["caption"] for part in rows for row in part[:2]]
    assert samples[0]["jpg"].size == (8, 8)
    assert samples[0]["json"]["captions"] == [samples[0]["txt"], "another"]
    assert samples[0]["json"]["selected_by"] == [1]
    assert samples[0]["json"]["pdq"] == "00" * 32
    with tarfile.open(tmp_path / "shards/00000.tar") as tar:
        names = tar.getnames()
    assert names == [f"{uid}.{kind}" for uid in kept[:2] for kind in ("jpg", "txt", "json")]


def open_clip_caption(metadata: dict, keys: str) -> str:
    """What open_clip's `--json-text-key a;b` (its main branch) reads: the first of the keys whose value is a text."""
    values = [metadata.get(key.strip()) for key in keys.split(";")]
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def test_open_clip_reads_the_caption_by_its_json_key(tmp_path):
    """It passes over lists, such as `captions`; the further ones have keys of their own."""
    make_shards(tmp_path)
    with tarfile.open(tmp_path / "shards/00000.tar") as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}
    for name in (name for name in members if name.endswith(".json")):
        metadata, text = json.loads(members[name]), members[name.replace(".json", ".txt")].decode()
        assert open_clip_caption(metadata, "caption") == open_clip_caption(metadata, "captions; caption") == text
        assert metadata["captions"] == [text, "another"]
        assert open_clip_caption(metadata, "captions") == ""
        assert open_clip_caption(metadata, "caption_2;caption") == "another"
        assert open_clip_caption(metadata, "caption_3; caption") == text


@pytest.mark.parametrize("count", [1, 3, 12])
def test_further_captions_have_keys_of_their_own(tmp_path, count):
    captions = [f"caption number {n}" for n in range(1, count + 1)]
    row = {"uid": "0" * 32, "caption": captions[0], "captions": captions, "pdq": b"\0" * 32}
    with (tmp_path / "one.tar").open("wb") as out, TarWriter(out) as tar:
        shards._add_sample(tar, row, b"image", "jpg")
    with tarfile.open(tmp_path / "one.tar") as tar:
        metadata = json.load(tar.extractfile(f"{row['uid']}.json"))
    assert metadata["captions"] == captions
    keys = [f"caption_{n}" for n in range(2, 6)]
    assert [metadata[key] for key in keys] == [*captions[1:5], "", "", "", ""][:4]
    assert metadata.keys() == {*row, *keys}


def test_the_table_says_where_each_image_lies(tmp_path):
    make_shards(tmp_path)
    for part in range(2):
        table = pq.read_table(tmp_path / f"shards/{part:05d}.parquet").to_pylist()
        assert {row["shard"] for row in table if row["status"] == "success"} == {f"{part:05d}.tar"}
        assert {(row["shard"], row["offset"], row["size"]) for row in table if row["status"] != "success"} == {
            (None, None, None)
        }
        with tarfile.open(tmp_path / f"shards/{part:05d}.tar") as tar, tar.fileobj as file:
            for row in table:
                if row["status"] == "success":
                    image = tar.extractfile(f"{row['uid']}.jpg").read()
                    file.seek(row["offset"])
                    assert file.read(row["size"]) == image


@pytest.mark.slow
def test_of_many_shards_only_those_that_lose_something_are_written_again(tmp_path):
    workspace, parts = Workspace(str(tmp_path / "set")), 200
    fetched, decided, rows = {}, {}, []
    for part in range(parts):
        marker, files, part_rows = fetched_part(workspace, part, 0)
        fetched[f"part-{part:05d}"] = marker
        decided |= files
        rows.append(part_rows)
    # A near duplicate of part 7 gave its caption to a pair of part 9.
    duplicate, survivor = rows[7][4], rows[9][0]
    names = {"uid": duplicate["uid"], "survivor": survivor["uid"], "reason": "near_duplicate"}
    duplicates = UnitOutput(workspace)
    table = pa.Table.from_pylist([names | {"distance": 3, "part": 7, "survivor_part": 9}], DUPLICATES)
    duplicates.write_table("dedup/duplicates.parquet", table)
    build, decision = Build(workspace, parse_beam_options([]), Progress(None)), Marker("d", decided, {})

    def write() -> dict[str, int]:
        withdrawn = run_listed(build, fetched, decision, {}, find_takedowns(workspace))
        written = run_shards(build, fetched, {}, decision, withdrawn)
        write_manifest(build, written, Account((StageAccount("shards", 4, 4, {}),)), {"seed": 1}, "9.9")
        return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set/shards").iterdir()}

    before = write()
    request = [rows[part][0]["url"] for part in range(0, parts, 10)] + [duplicate["url"]]
    (tmp_path / "request.txt").write_text("".join(f"{url}\n" for url in request))
    keep_request(workspace, read_request(str(tmp_path / "request.txt")))
    after = write()
    changed = {name for name in after if before[name] != after[name]} - {"manifest.json", "sizes.json"}
    touched = {*range(0, parts, 10), 7, 9}
    assert changed == {f"{part:05d}{end}" for part in touched for end in (".tar", ".parquet", "_stats.json")}
    assert read_manifest(f"{tmp_path}/set/shards").samples == 2 * parts - 20


def test_every_planned_pair_keeps_a_row_with_its_reason(tmp_path):
    make_shards(tmp_path)
    table = pq.read_table(tmp_path / "shards/00001.parquet")
    assert table.schema.equals(SHARD)
    statuses = ["success", "success", "failed_to_download", "failed_to_resize", "dropped", "dropped"]
    assert table["status"].to_pylist() == statuses
    assert table["reason"].to_pylist() == OUTCOMES
    stats = json.loads((tmp_path / "shards/00001_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["dropped"]) == (6, 2, 2)
    assert sum(stats["status_dict"].values()) == 6


def test_the_manifest_says_what_is_there(tmp_path):
    workspace, _ = make_shards(tmp_path)
    manifest = read_manifest(f"{tmp_path}/shards")
    assert manifest.samples == 4
    assert [shard.samples for shard in manifest.shards] == [2, 2]
    assert workspace.read_json("shards/sizes.json") == {"00000.tar": 2, "00001.tar": 2}
    assert manifest.content["files"].keys() == {p.name for p in (tmp_path / "shards").iterdir()} - {
        "manifest.json",
        "sizes.json",
    }


def test_the_same_decisions_give_the_same_bytes(tmp_path):
    trees = []
    for name in ("a", "b"):
        workspace, _ = make_shards(tmp_path / name)
        trees.append({n: workspace.read_bytes(n) for n in workspace.sizes("shards")})
    assert trees[0] == trees[1]


def test_shards_of_a_killed_run_with_more_parts_are_removed_and_notes_of_users_are_not(tmp_path):
    for name in ("00007.tar", "00007.parquet", "00007_stats.json", "notes.txt"):
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / "shards" / name).write_text("left")
    make_shards(tmp_path)
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert names == {"notes.txt", "manifest.json", "sizes.json"} | {
        f"0000{part}{end}" for part in (0, 1) for end in (".tar", ".parquet", "_stats.json")
    }


@pytest.mark.parametrize("change", ["other images", "a shard is gone", "a shard is cut"])
def test_where_the_manifest_stands_the_set_is_whole(tmp_path, monkeypatch, change):
    make_shards(tmp_path)
    if change == "a shard is gone":
        (tmp_path / "shards/00001.tar").unlink()
    if change == "a shard is cut":
        (tmp_path / "shards/00001.tar").write_bytes((tmp_path / "shards/00001.tar").read_bytes()[:-512])

    def stopped(self, part, output):
        raise RuntimeError("the machine is gone")

    with monkeypatch.context() as patch:
        patch.setattr(shards.WriteShard, "run", stopped)
        with pytest.raises(UserError, match="the machine is gone"):
            make_shards(tmp_path, shade=100 * (change == "other images"))
    assert not (tmp_path / "shards/manifest.json").exists()
    make_shards(tmp_path)
    assert read_manifest(f"{tmp_path}/shards").samples == 4
