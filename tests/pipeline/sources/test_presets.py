"""Published lists by name, from real files or documented headers."""

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from support.recorded_web import image_url, make_images, make_project
from support.warc_files import Rows, rows_of

from pipeline.build import run_build
from pipeline.config import PairsConfig
from pipeline.config.sources import PresetName, SourceConfig
from pipeline.engine.progress import Progress
from pipeline.errors import UserError
from pipeline.records import Reason
from pipeline.sources import read_source
from pipeline.sources.presets import PRESETS

URL = "http://a.example/1.jpg"
LAION = "SAMPLE_ID URL TEXT HEIGHT WIDTH LICENSE NSFW similarity"
HEADERS: dict[str, tuple[str, str]] = {
    "laion2b": ("part-00000.parquet", LAION),
    "laion400m": ("part-00000.parquet", LAION),
    "datacomp": (
        "0.parquet",
        "uid url text original_width original_height clip_b32_similarity_score clip_l14_similarity_score sha256",
    ),
    "coyo": ("part-00000.parquet", "id url text width height image_phash text_length word_count num_faces"),
    "yfcc15m": (
        "yfcc.jsonl",
        "photoid uid unickname datetaken title description usertags pageurl downloadurl licensename licenseurl",
    ),
    "wit-google": (
        "wit_v1.train.all-0.tsv.gz",
        "language page_url image_url page_title section_title hierarchical_section_title caption_reference_description "
        "caption_attribution_description caption_alt_text_description mime_type original_height original_width",
    ),
}
TEXTS = {
    "yfcc15m": {"title": "A+dog%2C+asleep", "description": "On%20the%20sofa"},
    "wit-google": {
        "caption_reference_description": "A dog",
        "caption_attribution_description": "English: a dog",
        "caption_alt_text_description": "",
    },
}


def read(path: Path, **options: Any) -> tuple[Rows, Counter[Reason]]:
    return rows_of(read_source(source(path, **options), str(path), PairsConfig()))


def source(path: Path, **options: Any) -> SourceConfig:
    return SourceConfig.model_validate({"kind": "url-table", "paths": [str(path)]} | options)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(gzip.compress(out.getvalue().encode()))
    return path


def test_every_preset_has_a_name_in_the_config_and_a_line_in_the_documentation() -> None:
    assert set(get_args(PresetName)) == PRESETS.keys()
    page = (Path(__file__).parents[3] / "docs/sources.md").read_text()
    for name in PRESETS:
        assert f"`{name}`" in page


@pytest.mark.parametrize("preset", HEADERS)
def test_a_table_with_the_documented_header(tmp_path: Path, preset: str) -> None:
    name, columns = HEADERS[preset]
    header = columns.split()
    row: dict[str, Any] = dict.fromkeys(header, "x")
    row |= {column: URL for column in header if column.lower() in ("url", "image_url", "downloadurl")}
    row |= {column: "http://a.example/page" for column in header if column in ("page_url", "pageurl")}
    row |= {column: "A dog" for column in header if column.lower() == "text"}
    row |= {"sha256": "AB" * 32} if "sha256" in header else {}
    row |= TEXTS.get(preset, {})
    path = write(tmp_path / name, [row])
    rows, dropped = read(path, preset=preset)
    expected = {"yfcc15m": ["A dog, asleep", "On the sofa"], "wit-google": ["A dog", "English: a dog"]}
    assert [one[1] for one in rows] == expected.get(preset, ["A dog"])
    assert {one[0] for one in rows} == {URL}
    assert {one[3] for one in rows} == ({"http://a.example/page"} if PRESETS[preset].page_url else {""})
    assert not dropped
    for verify, stated in ((False, None), (True, f"sha256:{'ab' * 32}" if preset == "datacomp" else None)):
        (batch,) = read_source(source(path, preset=preset, verify=verify), str(path), PairsConfig())
        assert {one["stated_hash"] for one in batch.candidates.to_pylist()} == {stated}


def test_real_lists(shared_data: Path) -> None:
    rows, dropped = read(shared_data / "text/cc3m_validation.tsv.gz", preset="cc3m")
    assert len(rows) + dropped.total() == 15_833
    assert len(rows) > 15_800
    rows, dropped = read(shared_data / "text/laion400m_1000.parquet", preset="laion400m")
    assert len(rows) + dropped.total() == 1_000


def test_cc12m_has_its_columns_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "cc12m.tsv").write_text(f"{URL}\tA dog\n")
    assert read(tmp_path / "cc12m.tsv", preset="cc12m")[0] == [(URL, "A dog", "caption", "")]
    pq.write_table(pa.table({"image_url": [URL], "caption": ["A dog"]}), tmp_path / "cc12m.parquet")
    assert read(tmp_path / "cc12m.parquet", preset="cc12m")[0] == [(URL, "A dog", "caption", "")]


def test_the_captions_of_coco_as_they_come(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "text/coco_val2017_captions.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    images = {image["id"]: image for image in content["images"]}
    expected = [
        (images[one["image_id"]]["coco_url"], " ".join(one["caption"].split()), images[one["image_id"]]["flickr_url"])
        for one in content["annotations"]
    ]
    rows, dropped = read(path, preset="coco")
    assert [(row[0], row[1], row[3]) for row in rows] == expected
    assert (len(rows), dropped) == (25_014, Counter())
    (tmp_path / "cut.json").write_bytes(gzip.decompress(path.read_bytes())[:-100_000])
    rows, dropped = read(tmp_path / "cut.json", preset="coco")
    assert dropped == Counter({Reason.DAMAGED_FILE: 1})
    assert 20_000 < len(rows) < 25_014
    (batch, *_) = read_source(source(path, preset="coco", keep=["id", "license"]), str(path), PairsConfig())
    assert json.loads(batch.candidates["extra"][0].as_py()) == {
        "id": content["annotations"][0]["id"],
        "license": images[content["annotations"][0]["image_id"]]["license"],
    }


def test_visual_genome_redcaps_and_sbu_as_they_come(tmp_path: Path) -> None:
    regions = [{"region_id": n, "image_id": 1 + n // 2, "phrase": f"phrase {n}", "x": 1} for n in range(3)]
    (tmp_path / "region_descriptions.json").write_text(json.dumps([{"id": 1, "regions": regions}]))
    with pytest.raises(UserError, match=r"image_data\.json: Visual Genome's image addresses"):
        read(tmp_path / "region_descriptions.json", preset="visual-genome")
    (tmp_path / "image_data.json").write_text(json.dumps([{"image_id": 1, "url": URL, "width": 800}]))
    rows, dropped = read(tmp_path / "region_descriptions.json", preset="visual-genome")
    assert [row[:2] for row in rows] == [(URL, "phrase 0"), (URL, "phrase 1")]
    assert dropped == Counter({Reason.NO_URL: 1})
    post = {"image_id": "b", "url": URL, "raw_caption": "My dog", "caption": "my dog", "permalink": "/r/dogs/b/"}
    (tmp_path / "dogs_2020.json").write_text(json.dumps({"info": {}, "annotations": [post, 3]}))
    rows, dropped = read(tmp_path / "dogs_2020.json", preset="redcaps")
    assert rows == [(URL, "My dog", "caption", "https://www.reddit.com/r/dogs/b/")]
    assert dropped == Counter({Reason.DAMAGED_RECORD: 1})
    (tmp_path / "sbu.json").write_text(json.dumps({"image_urls": [URL, URL], "user_ids": [1, 2], "captions": ["a"]}))
    rows, dropped = read(tmp_path / "sbu.json", preset="sbu")
    assert ([row[:2] for row in rows], dropped) == ([(URL, "a")], Counter({Reason.NO_CAPTION: 1}))


@pytest.mark.parametrize("content", ["", "[", "{", "[1, 2]", '{"annotations": 3}', '{"annotations": [{}]}', "null"])
def test_other_json_is_no_traceback(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    for preset in ("coco", "redcaps", "sbu"):
        with suppress(UserError):  # a key that is missing
            rows, dropped = read(tmp_path / "x.json", preset=preset)
            assert rows == []
            assert set(dropped) <= {Reason.DAMAGED_FILE, Reason.DAMAGED_RECORD, Reason.NO_CAPTION, Reason.NO_URL}
    with pytest.raises(UserError, match=r"a \.json file needs sources\.preset"):
        read(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("preset", "name", "columns"),
    [("cc3m", "list.parquet", "URL TEXT"), ("laion2b", "list.jsonl", "link text"), ("coco", "list.parquet", "url")],
)
def test_a_table_that_is_not_of_its_preset_says_what_the_preset_is_for(
    tmp_path: Path, preset: str, name: str, columns: str
) -> None:
    path = write(tmp_path / name, [dict.fromkeys(columns.split(), "x")])
    with pytest.raises(UserError) as raised:
        read(path, preset=preset)
    message = str(raised.value)
    assert f"its columns are {', '.join(map(repr, columns.split()))}; preset = '{preset}' is for" in message
    assert PRESETS[preset].files in message
    assert "choose another preset, or name the columns with url and caption" in message


@pytest.mark.parametrize("preset", ["coco", "redcaps", "sbu", "visual-genome"])
def test_json_of_something_else_is_no_empty_source(tmp_path: Path, preset: str) -> None:
    (tmp_path / "image_data.json").write_text("[]")
    (tmp_path / "x.json").write_text(json.dumps({"licenses": [], "categories": [{"id": 1}]}))
    with pytest.raises(UserError, match=rf"x\.json: holds nothing that preset = '{preset}' reads, which is for "):
        read(tmp_path / "x.json", preset=preset)


def test_columns_of_any_name_several_texts_and_more_that_are_kept(tmp_path: Path) -> None:
    table = pa.table(
        {
            "link": [URL, URL, URL],
            "title": ["A dog", "", None],
            "tags": ["dog", "cat", " "],
            "score": [0.5, None, 1.0],
            "n": [1, 2, 3],
            "box": [[1], [2], [3]],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    options: dict[str, Any] = {"url": "link", "caption": ["title", "tags"]}
    rows, dropped = read(tmp_path / "t.parquet", **options, keep=["score", "n"])
    assert [row[1:3] for row in rows] == [("A dog", "title"), ("dog", "tags"), ("cat", "tags")]
    assert dropped == Counter({Reason.NO_CAPTION: 1})
    config = source(tmp_path / "t.parquet", **options, keep=["score", "n"])
    (batch,) = read_source(config, str(tmp_path / "t.parquet"), PairsConfig())
    assert batch.candidates["extra"].to_pylist() == ['{"n":1,"score":0.5}'] * 2 + ['{"n":2}']
    with pytest.raises(UserError, match="only plain columns can be kept"):
        read(tmp_path / "t.parquet", **options, keep=["box"])
    with pytest.raises(UserError, match="no column 'other'"):
        read(tmp_path / "t.parquet", **options, keep=["other"])
    with pytest.raises(ValidationError, match="preset"):
        source(tmp_path / "t.parquet", preset="laion5b")


def test_an_image_that_is_not_the_one_the_list_was_made_of(tmp_path: Path) -> None:
    config = make_project(tmp_path, count=20, parts=1)
    images = make_images(20)
    with (tmp_path / "list.csv").open("w") as out:
        out.write("url,caption,hash,rating\n")
        for n in (0, 1, 2, 4):
            kind = hashlib.sha256 if n < 2 else hashlib.md5
            digest = kind(images[image_url(n)]).hexdigest()
            out.write(f"{image_url(n)},a dog,{digest if n % 2 == 0 else digest[::-1]},{n}\n")
    text = config.read_text()
    start, end = text.index("[[sources]]"), text.index("[balance]")
    for column, kept, mismatches in (("sha256", {0, 2, 4}, 1), ("md5", {0, 1, 2, 4}, 0)):
        table = f'[[sources]]\nkind = "url-table"\npaths = ["list.csv"]\n{column} = "hash"\nkeep = ["rating"]\n'
        config.write_text(text[:start] + table + text[end:])
        account = run_build(config, progress=Progress(None))
        (fetched,) = [stage for stage in account.stages if stage.stage == "fetched"]
        assert fetched.reasons.get(Reason.HASH_MISMATCH, 0) == mismatches
        rows = pq.read_table(tmp_path / "work/shards/00000.parquet").to_pylist()
        found = {int(json.loads(row["extra"])["rating"]) for row in rows if row["status"] != "failed_to_download"}
        assert found == kept
