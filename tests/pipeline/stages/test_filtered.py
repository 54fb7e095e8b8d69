"""Filters on images in whole builds: every image is accounted for, and what is dropped is in no shard."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import recorded_web
from support.recorded_web import make_project, picture

from pipeline.build import run_build
from pipeline.engine.progress import Progress
from pipeline.errors import ConfigError, UserError
from pipeline.records import SCORE
from pipeline.stages import filtered

RULE = """
import numpy as np

def bright(pairs, images):
    assert len(images) == pairs.num_rows
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
    return [image.mean() < 128 for image in images], ["bright"] * pairs.num_rows
"""
SCORER = """
import numpy as np

class ByLength:
    def score(self, images, captions):
        return np.array([len(caption) / 100 for caption in captions], np.float32)

def open_scorer(config):
    return ByLength()
"""


def grey(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (96, 80), (seed, 90, 30)).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        recorded_web, "picture", lambda seed, **kw: grey(seed) if seed % 8 == 1 else picture(seed, **kw)
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("image_rules", "length_scorer"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "image_rules.py").write_text(RULE)
    (tmp_path / "length_scorer.py").write_text(SCORER)
    (tmp_path / "model.pt").write_bytes(b"weights")
    return make_project(tmp_path, 60, parts=3)


def build(config: Path, tables: str = "") -> dict[str, dict]:
    text = config.read_text().partition("# added")[0]
    config.write_text(f"{text}# added\n{tables}")
    account = run_build(config, progress=Progress(None))
    return {stage["stage"]: stage for stage in account.to_json()}


def rows(config: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(p) for p in sorted((config.parent / "work/shards").glob("*.parquet")))


def test_images_are_dropped_before_duplicates_and_the_cap(config: Path) -> None:
    plain = build(config)
    assert "filtered" not in plain
    untouched = rows(config)
    tables = '[filters]\nsingle_colour = true\n[[filters.python]]\ncall = "image_rules:bright"\non = "images"\n'
    stages = build(config, tables)
    reasons = stages["filtered"]["reasons"]
    assert reasons.keys() == {"single_colour", "python:bright"}
    assert stages["filtered"]["inputs"] == plain["fetched"]["kept"]
    assert stages["dedup"]["inputs"] == stages["filtered"]["kept"]
    found = rows(config)
    assert found.num_rows == untouched.num_rows
    assert SCORE.name not in found.column_names
    names = set[str]()
    for path in (config.parent / "work/shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            names.update(tar.getnames())
    for row in found.to_pylist():
        assert (f"{row['uid']}.jpg" in names) == (row["status"] == "success")
        if row["reason"] in reasons:
            assert row["status"] == "dropped"
    dropped = found.filter(pa.compute.is_in(found["reason"], pa.array(list(reasons))))
    assert dropped.num_rows == sum(reasons.values())
    assert json.loads((config.parent / "work/shards/manifest.json").read_text())["recipe"]["filters"]["single_colour"]

    assert build(config) == plain  # switched off again, without another fetch
    assert rows(config).equals(untouched)
    assert not list((config.parent / "work").glob("filtered/*"))


def test_scores_are_columns_and_conditions(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "_SCORER", "length_scorer:open_scorer")
    sys.path.append(str(config.parent))
    table = '[scores]\ncheckpoint = "model.pt"\n'
    stages = build(config, table)
    assert stages["filtered"]["reasons"] == {}
    found = rows(config).to_pylist()
    for row in found:
        scored = row["status"] == "success" or row["reason"] in ("exact_duplicate", "near_duplicate", "over_final_cap")
        if scored:
            assert row["score"] == pytest.approx(len(row["caption"]) / 100)
    with tarfile.open(config.parent / "work/shards/00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".json"))
        sample = json.load(tar.extractfile(name))
    assert sample["score"] == pytest.approx(len(sample["caption"]) / 100)

    scores = sorted((row["score"] for row in found if row["score"] is not None), reverse=True)
    expensive = {p: p.stat().st_mtime_ns for p in (config.parent / "work/scored").iterdir()}
    least = scores[len(scores) // 2]
    stages = build(config, table + f"min = {least:.4f}\n")
    assert stages["filtered"]["reasons"] == {"low_score": sum(score < np.float32(round(least, 4)) for score in scores)}
    stages = build(config, table + "keep_fraction = 0.3\n")
    assert stages["filtered"]["kept"] == sum(score >= scores[int(np.ceil(0.3 * len(scores))) - 1] for score in scores)
    assert {p: p.stat().st_mtime_ns for p in (config.parent / "work/scored").iterdir()} == expensive


def test_the_balance_takes_the_best(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "_SCORER", "length_scorer:open_scorer")
    sys.path.append(str(config.parent))
    config.write_text(config.read_text().replace("cap = 15\nslack = 1.5", "cap = 4\nslack = 9"))
    build(config, '[scores]\ncheckpoint = "model.pt"\nbalance = "best"\n')
    found = rows(config).to_pylist()
    unique = [row for row in found if row["status"] == "success" or row["reason"] == "over_final_cap"]
    for query in range(10):
        matching = [row for row in unique if query in row["query_ids"]]
        chosen = [row["score"] for row in matching if row["status"] == "success" and query in row["selected_by"]]
        best = sorted((row["score"] for row in matching), reverse=True)[:4]
        assert sorted(chosen, reverse=True) == best


def test_what_is_missing_is_one_line(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"scores\.checkpoint = .*none\.pt.*: no such file or folder"):
        build(config, '[scores]\ncheckpoint = "none.pt"\n')
    with pytest.raises(ConfigError, match=r"filters\.python: image_rules:dim: .*no attribute"):
        build(config, '[[filters.python]]\ncall = "image_rules:dim"\non = "images"\n')


def test_a_rule_that_fails_ends_the_build_with_its_name(config: Path) -> None:
    (config.parent / "image_rules.py").write_text("def bright(pairs, images):\n    return images[0].nothing\n")
    with pytest.raises(UserError, match="image_rules:bright failed: AttributeError"):
        build(config, '[[filters.python]]\ncall = "image_rules:bright"\non = "images"\n')
