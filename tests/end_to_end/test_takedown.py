"""`wit takedown`: pairs leave a finished set, the rest stays as it is, and they do not come back."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.recorded_web import make_project, picture, tree

from dedup import fingerprint
from pipeline.cli.main import main
from pipeline.stages.balance.exact import balance
from queries.allowlist import Allowlist

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("takedown"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


@pytest.fixture
def project(built: Path, tmp_path: Path) -> Path:
    """A copy of the project with its finished set; the sources keep their times of change, which identify them."""
    shutil.copytree(built.parent, tmp_path / "project")
    return tmp_path / "project" / "wit.toml"


def rows_of(work: Path) -> dict[str, dict]:
    return {
        row["uid"]: row
        for path in sorted((work / "shards").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    }


def samples_of(work: Path) -> dict[str, dict]:
    return {uid: row for uid, row in rows_of(work).items() if row["status"] == "success"}


def in_tars(work: Path) -> set[str]:
    names = set()
    for path in (work / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names |= {name.partition(".")[0] for name in tar.getnames()}
    return names


def takedown(config: Path, *lines: str, options: tuple[str, ...] = ()) -> int:
    request = config.parent / "request.txt"
    request.write_text("".join(f"{line}\n" for line in lines))
    return main(["takedown", str(request), "-c", str(config), "--quiet", *options])


def check_consistent(config: Path) -> None:
    """Check that tars, tables, counts, manifest and report agree."""
    work = config.parent / "work"
    assert main(["verify", "-c", str(config)]) == 0
    assert main(["verify", "--shards", str(work / "shards")]) == 0
    assert main(["status", "-c", str(config)]) == 0
    samples = samples_of(work)
    manifest = json.loads((work / "shards/manifest.json").read_text())
    assert in_tars(work) == samples.keys()
    assert manifest["samples"] == len(samples) == sum(json.loads((work / "shards/sizes.json").read_text()).values())
    accounting = json.loads((work / "report/accounting.json").read_text())
    assert accounting["closes"]
    assert accounting["stages"][-1]["kept"] == len(samples)
    selected = Counter(query for row in samples.values() for query in row["selected_by"])
    kept = pq.read_table(work / "report/balance.parquet")["kept"].to_pylist()
    assert kept == [selected[query] for query in range(len(kept))]
    assert f"{len(samples):,} image-text pairs" in (work / "report/data_card.md").read_text()


def written(work: Path, before: dict[str, int]) -> set[str]:
    return {p.name for p in (work / "shards").glob("*.tar") if before.get(p.name) != p.stat().st_mtime_ns}


def times(work: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (work / "shards").iterdir()}


def test_a_url_leaves_with_all_its_pairs_and_a_build_does_not_bring_it_back(project: Path) -> None:
    work = project.parent / "work"
    before, at = samples_of(work), times(work)
    url = min(row["url"] for row in before.values() if len(row["captions"]) > 1)
    gone = {uid for uid, row in before.items() if row["url"] == url}
    assert takedown(project, "# asked for by the author", "", url.replace("http://", "https://")) == 0
    assert samples_of(work).keys() == before.keys() - gone
    assert written(work, at) == {before[uid]["shard"] for uid in gone}
    check_consistent(project)
    text = b"".join(path.read_bytes() for path in (work / "shards").iterdir() if path.suffix != ".tar")
    assert url.encode() not in text
    after = rows_of(work)
    for uid in gone:
        assert (after[uid]["status"], after[uid]["reason"], after[uid]["refused_by"]) == (
            "dropped",
            "opted_out",
            "takedown",
        )
        assert (after[uid]["caption"], after[uid]["captions"], after[uid]["sha256"]) == ("", None, None)

    finished = tree(work)
    assert takedown(project, url) == 0  # again: nothing changes
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert tree(work) == finished
    (project.parent / "again").mkdir()
    shutil.copytree(work / "consent/takedown", project.parent / "again/consent/takedown")
    project.write_text(project.read_text().replace('workspace = "work"', 'workspace = "again"'))
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert url not in {row["url"] for row in samples_of(project.parent / "again").values()}


def test_the_audit_log_says_what_and_when_and_names_nothing(project: Path) -> None:
    work = project.parent / "work"
    url = min(row["url"] for row in samples_of(work).values())
    assert takedown(project, url, "host1.example") == 0
    log = (work / "consent/takedowns.jsonl").read_text()
    received, done = (json.loads(line) for line in log.splitlines())
    assert received["entries"] == done["entries"] == {"domain": 1, "url": 1}
    assert (received["event"], done["event"]) == ("received", "done")
    assert done["pairs"] > 1
    assert url not in log
    assert "host1" not in log
    assert url not in (work / "consent/takedown/url_hashes.txt").read_text()


def test_a_domain_leaves_and_survivors_lose_the_captions_of_its_duplicates(project: Path) -> None:
    work = project.parent / "work"
    before = rows_of(work)
    duplicates = pq.read_table(work / "dedup/duplicates.parquet").to_pylist()
    fetched = {
        row["uid"]: row for path in (work / "fetched").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    assert takedown(project, "host3.example") == 0
    after = samples_of(work)
    assert not any("//host3.example" in row["url"] for row in after.values())
    assert {
        uid for uid, row in before.items() if row["status"] == "success" and "host3" not in row["url"]
    } == after.keys()
    lost = 0
    for uid, row in after.items():
        own = [d["uid"] for d in duplicates if d["survivor"] == uid]
        expected = {row["caption"]} | {fetched[d]["caption"] for d in own if "//host3.example" not in fetched[d]["url"]}
        assert set(row["captions"]) == expected
        lost += row["captions"] != before[uid]["captions"]
    assert lost > 0
    check_consistent(project)


def test_an_image_leaves_by_its_look_within_a_radius(project: Path) -> None:
    work = project.parent / "work"
    before = samples_of(work)
    numbers = (int(row["url"].rsplit("/", 1)[1].removesuffix(".jpg")) for row in before.values())
    number = next(i for i in sorted(numbers) if i % 11 != 3)  # those are copies of others
    (project.parent / "photo.jpg").write_bytes(picture(number, (300, 250), quality=70))
    look = np.frombuffer(fingerprint(project.parent / "photo.jpg").pdq, np.uint8)
    distance = {
        uid: int(np.bitwise_count(np.frombuffer(row["pdq"], np.uint8) ^ look).sum()) for uid, row in before.items()
    }
    near = sorted(distance.values())
    assert 0 < near[0] <= 31 < near[1]  # the picture at another size, and no other
    assert takedown(project, "image:photo.jpg", options=("--radius", "0")) == 0
    assert samples_of(work).keys() == before.keys()
    assert takedown(project, "image:photo.jpg") == 0
    assert samples_of(work).keys() == {uid for uid in before if distance[uid] > 31}
    check_consistent(project)


def test_a_pair_or_a_file_leaves_alone(project: Path) -> None:
    work = project.parent / "work"
    before = samples_of(work)
    first, second = sorted(before)[:2]
    assert takedown(project, f"uid:{first}", f"sha256:{before[second]['sha256']}") == 0
    assert samples_of(work).keys() == {
        uid for uid, row in before.items() if uid != first and row["sha256"] != before[second]["sha256"]
    }
    check_consistent(project)


def test_overlap_with_evaluation_sets_follows(project: Path) -> None:
    work = project.parent / "work"
    overlap = [row for row in pq.read_table(work / "dedup/overlap/shapes.parquet").to_pylist() if row["kept"]]
    count = json.loads((work / "report/overlap.json").read_text())
    assert takedown(project, *(f"uid:{row['uid']}" for row in overlap)) == 0
    after = json.loads((work / "report/overlap.json").read_text())
    assert count != after
    assert "shapes" in json.dumps(after)
    page = (work / "report/index.html").read_text()
    assert not any(row["uid"] in page for row in overlap)
    check_consistent(project)


def test_a_kill_at_any_moment_ends_in_the_same_tree(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project.parent, tmp_path / "undisturbed")
    assert takedown(tmp_path / "undisturbed/wit.toml", "host2.example") == 0
    request = project.parent / "request.txt"
    request.write_text("host2.example\n")
    command = [sys.executable, "-m", "pipeline.cli", "takedown", str(request), "-c", str(project), "--quiet"]
    moments = random.Random(4)
    kills = 0
    for _ in range(6):
        run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        kept = project.parent / "work/consent/takedown/domains.txt"
        while not kept.exists() and run.poll() is None:
            time.sleep(0.01)
        with suppress(subprocess.TimeoutExpired):
            run.wait(moments.uniform(0.0, 1.5))
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            kills += 1
    assert kills > 0
    assert main(["build", "-c", str(project), "--quiet"]) == 0  # a build completes it too
    undisturbed, killed = (tree(folder / "work") for folder in (tmp_path / "undisturbed", project.parent))
    assert killed == undisturbed


def test_a_refill_takes_exactly_what_the_cap_allows_of_what_was_fetched(project: Path) -> None:
    work = project.parent / "work"
    before = samples_of(work)
    assert takedown(project, "host0.example", "host1.example", options=("--refill",)) == 0
    after = samples_of(work)
    check_consistent(project)
    tables = [pq.read_table(path) for path in sorted((work / "fetched").glob("*.parquet"))]
    fetched = pa.concat_tables(tables)
    duplicates = pq.read_table(work / "dedup/duplicates.parquet")["uid"]
    gone, copies = ("http://host0", "http://host1"), set(duplicates.to_pylist())
    stays = [
        status == "success" and uid not in copies and not url.startswith(gone)
        for status, uid, url in zip(*(fetched[name].to_pylist() for name in ("status", "uid", "url")), strict=True)
    ]
    survivors = fetched.filter(pa.array(stays)).drop_columns(["selected_by"])
    queries = Allowlist.load(str(project.parent / "queries.parquet")).queries
    chosen = balance(survivors, cap=15, seed=3, queries=queries)
    assert after.keys() == set(chosen["uid"].to_pylist())
    selected = dict(zip(chosen["uid"].to_pylist(), chosen["selected_by"].to_pylist(), strict=True))
    assert {uid: row["selected_by"] for uid, row in after.items()} == selected
    assert after.keys() - before.keys()  # some came in
    finished = tree(work)
    assert main(["build", "-c", str(project), "--quiet"]) == 0
    assert tree(work) == finished


def test_a_refill_that_was_killed_is_completed(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(project.parent, tmp_path / "whole")
    assert takedown(tmp_path / "whole/wit.toml", "host0.example", options=("--refill",)) == 0
    from pipeline.stages.dedup import steps

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps._Stage, "decide", stop)
        assert takedown(project, "host0.example", options=("--refill",)) == 130
    assert takedown(project, "host0.example", options=("--refill",)) == 0
    killed, whole = tree(project.parent / "work"), tree(tmp_path / "whole/work")
    assert killed == whole


def test_a_set_without_its_workspace(project: Path, tmp_path: Path) -> None:
    work = project.parent / "work"
    shutil.copytree(work / "shards", tmp_path / "received")
    before = samples_of(work)
    (tmp_path / "request.txt").write_text("host2.example\n")
    command = ["takedown", str(tmp_path / "request.txt"), "--shards", str(tmp_path / "received"), "--quiet"]
    assert main([*command, "--dry-run"]) == 0
    assert main(command) == 0
    assert main(["verify", "--shards", str(tmp_path / "received")]) == 0
    names = {uid for uid, row in before.items() if "//host2.example" not in row["url"]}
    found = {}
    for path in sorted((tmp_path / "received").glob("*.parquet")):
        tar = path.with_suffix(".tar").read_bytes()
        for row in pq.read_table(path).to_pylist():
            if row["status"] == "success":
                found[row["uid"]] = hashlib.sha256(tar[row["offset"] : row["offset"] + row["size"]]).hexdigest()
    assert found.keys() == names
    manifest = json.loads((tmp_path / "received/manifest.json").read_text())
    assert manifest["samples"] == len(names) == manifest["account"][-1]["kept"]
    finished = tree(tmp_path / "received")
    assert main(command) == 0
    assert tree(tmp_path / "received") == finished
    assert not any(path.name.startswith(("takedown.pending", ".wit")) for path in (tmp_path / "received").iterdir())


def test_a_received_set_that_was_killed_half_way(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.stages import takedown_shards

    for name in ("killed", "whole"):
        shutil.copytree(project.parent / "work/shards", tmp_path / name)
    (tmp_path / "request.txt").write_text("host2.example\nhost4.example\n")
    command = ["takedown", str(tmp_path / "request.txt"), "--quiet", "--shards"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    write, calls = takedown_shards._rewrite, []

    def rewrite(*arguments: object) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(takedown_shards, "_rewrite", rewrite)
        assert main([*command, str(tmp_path / "killed")]) == 130
    assert main([*command, str(tmp_path / "killed")]) == 0
    killed, whole = (tree(tmp_path / name) for name in ("killed", "whole"))
    assert {k: v for k, v in killed.items() if k != "takedowns.jsonl"} == {
        k: v for k, v in whole.items() if k != "takedowns.jsonl"
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "nothing to take down"),
        (["http://"], "line 1: not an http(s) URL"),
        (["a.example", "uid:12"], "line 2: not a uid of 32 hexadecimal digits"),
        (["sha256:xyz"], "line 1: not a SHA-256"),
        (["pdq:00"], "line 1: not a PDQ hash"),
        (["pdq:" + "0" * 64 + " 99"], "line 1: not a distance"),
        (["image:absent.jpg"], "line 1: the image cannot be read"),
        (["image:request.txt"], "line 1: the image cannot be read"),
        (["some words"], "line 1: not a domain"),
    ],
)
def test_what_cannot_be_taken_down_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], lines: list[str], said: str
) -> None:
    before = tree(project.parent / "work")
    assert takedown(project, *lines) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert tree(project.parent / "work") == before


def test_without_a_finished_set_the_request_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_project(tmp_path / "new")
    assert takedown(config, "host0.example") == 1
    assert "the request is kept" in capsys.readouterr().err
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    assert not any("//host0.example" in row["url"] for row in samples_of(config.parent / "work").values())


def test_a_missing_list_and_a_folder_without_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "request.txt").write_text("a.example\n")
    assert main(["takedown", str(tmp_path / "absent.txt"), "--shards", str(tmp_path)]) == 2
    assert main(["takedown", str(tmp_path / "request.txt"), "--shards", str(tmp_path)]) == 1
    assert main(["takedown", str(tmp_path / "request.txt"), "--shards", str(tmp_path), "--dry-run"]) == 1
    assert capsys.readouterr().err.count("\n") == 3
