"""Shards that people already have as a source: the pairs, and the images from the same tars."""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from support.recorded_web import WORDS, make_project, picture
from support.warc_files import rows_of

from pipeline.build import run_build
from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.engine.progress import Progress
from pipeline.errors import ConfigError
from pipeline.fetching.images import bare_jpeg
from pipeline.records import Reason
from pipeline.sources import SourceBatch, read_source
from pipeline.sources.webdataset import named_by_content
from queries.allowlist import import_allowlist


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def read(path: Path | str, **options: Any) -> list[SourceBatch]:
    source = SourceConfig.model_validate({"kind": "webdataset", "paths": ["x"]} | options)
    return list(read_source(source, str(path), PairsConfig()))


def encode(image_format: str, seed: int = 1) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(seed))).save(out, image_format)
    return out.getvalue()


def sample(key: str, image: bytes, text: str, suffix: str = "jpg", **facts: Any) -> dict[str, bytes]:
    return {f"{key}.{suffix}": image, f"{key}.txt": text.encode(), f"{key}.json": json.dumps(facts).encode()}


def build(
    folder: Path, paths: str, words: list[str], *, keep: str = "", balance: str = "", **fetch: Any
) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Build a set from tars; return uid -> the JSON and the image of each sample."""
    folder.mkdir(exist_ok=True)
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    settings = "".join(f"{key} = {str(value).lower()}\n" for key, value in fetch.items())
    (folder / "wit.toml").write_text(
        'workspace = "work"\nseed = 3\n[allowlist]\npath = "queries.parquet"\n'
        f'[[sources]]\nkind = "webdataset"\npaths = ["{paths}"]\n{keep}[balance]\n{balance}'
        f"[fetch]\nparts = 2\n{settings}"
    )
    run_build(folder / "wit.toml", progress=Progress(None))
    return samples_in(folder / "work/shards")


def samples_in(shards: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, content in members.items():
            if name.endswith(".json"):
                found[name[:-5]] = json.loads(content), members[f"{name[:-5]}.jpg"]
    return found


def test_a_real_shard_of_img2dataset_gives_its_pairs_and_the_same_bytes(tmp_path: Path, shared_data: Path) -> None:
    shard = shared_data / "shards/cc12m_32.tar"
    with tarfile.open(shard) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    facts = {name[:-5]: json.loads(content) for name, content in members.items() if name.endswith(".json")}
    words = sorted({one["caption"].split()[0].strip(".,") for one in facts.values()})
    kept = build(tmp_path, str(shard), words, image_size=4096)
    expected = {(one["url"], members[f"{key}.txt"].decode()): members[f"{key}.jpg"] for key, one in facts.items()}
    assert len(kept) == 32
    same = 0
    for found, image in kept.values():
        original = expected[(found["url"], found["caption"])]
        assert bare_jpeg(original) == image
        same += original == image
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(original))), np.asarray(Image.open(io.BytesIO(image))))
        assert found["http_status"] is None
        assert (found["width"], found["height"]) == Image.open(io.BytesIO(image)).size
    assert same == 26, "the others have profiles, EXIF or comments"
    table = pq.read_table(tmp_path / "work/shards/00000.parquet")
    assert table.num_rows
    assert set(table["source"].to_pylist()) == {"cc12m_32.tar"}


def test_our_own_shards_give_the_same_set_again(tmp_path: Path) -> None:
    run_build(make_project(tmp_path / "first"), progress=Progress(None))
    first = samples_in(tmp_path / "first/work/shards")
    shutil.copytree(tmp_path / "first/work/shards", tmp_path / "copy")
    again = build(tmp_path / "second", str(tmp_path / "copy/*.tar"), WORDS, image_size=64)
    assert again.keys() == first.keys()
    for uid, (facts, image) in again.items():
        before = first[uid][0]
        assert image == first[uid][1]
        assert bare_jpeg(image) == image
        for name in ("url", "caption", "sha256", "page_url", "width", "height", "query_ids"):
            assert facts[name] == before[name], name


@pytest.mark.parametrize("order", ["best", "weighted"])
def test_a_query_keeps_the_pairs_that_the_tars_score_best(tmp_path: Path, order: str) -> None:
    scores = [round(n * 37 % 61 / 100, 2) for n in range(60)]
    members: dict[str, bytes] = {}
    for n, score in enumerate(scores):
        text = f"a dog {n}" if n % 3 else f"a cat and a dog {n}"
        members |= sample(str(n), picture(n), text, url=f"http://a.example/{n}.jpg", similarity=score)
    write_tar(tmp_path / "in/0.tar", members)
    keys = f'cap = 5\nscore = "similarity"\norder = "{order}"\ntemperature = 0.001\n'
    kept = build(tmp_path, "in/*.tar", ["cat", "dog"], keep='keep = ["similarity"]\n', balance=keys)
    best = sorted(range(60), key=lambda n: -scores[n])
    expected = {*best[:5], *[n for n in best if n % 3 == 0][:5]}
    found = {int(facts["url"].split("/")[-1][:-4]) for facts, _ in kept.values()}
    if order == "best":
        assert found == expected
    else:  # weights of exp(score / 0.001): nearly always the best
        assert len(found & expected) >= len(expected) - 1


def test_samples_in_all_forms_and_what_is_wrong_with_others(tmp_path: Path) -> None:
    members = (
        sample("a/1", picture(1), "a dog", url="http://a.example/1.jpg", sha256="ab" * 32, uid="u1", width=96)
        | sample("a/2", encode("PNG", 2), "a cat", suffix="png", url="http://a.example/2.png")
        | {"3.webp": encode("WEBP", 3), "3.txt": b"no url"}
        | {"4.jpg": picture(4), "4.json": json.dumps({"caption": "in json", "url": "http://a.example/4"}).encode()}
        | {"5.txt": b"no image", "5.json": b"{}"}
        | sample("6", picture(6), "", url="http://a.example/6.jpg")
        | {"7.jpg": picture(7), "7.txt": b"\xff\xfe", "8.jpg": picture(8), "8.txt": b"x", "8.json": b"[1]"}
        | sample("9", picture(9), "bad url", url="ftp://a.example/9.jpg")
    )
    write_tar(tmp_path / "00000.tar", members)
    for path in (tmp_path / "00000.tar", "memory://shards/00000.tar"):
        MemoryFileSystem().pipe_file("/shards/00000.tar", (tmp_path / "00000.tar").read_bytes())
        rows, dropped = rows_of(iter(read(path)))
        assert [row[:2] for row in rows] == [
            ("http://a.example/1.jpg", "a dog"),
            ("http://a.example/2.png", "a cat"),
            (named_by_content(hashlib.sha256(members["3.webp"]).digest()), "no url"),
            ("http://a.example/4", "in json"),
        ]
        assert dropped == Counter(
            {Reason.NO_IMAGE: 1, Reason.NO_CAPTION: 1, Reason.DAMAGED_RECORD: 2, Reason.BAD_URL: 1}
        )
    content = (tmp_path / "00000.tar").read_bytes()
    (batch,) = read(tmp_path / "00000.tar", keep=["uid", "width", "absent"])
    first, *others = batch.candidates.to_pylist()
    assert (first["stated_hash"], first["extra"]) == (f"sha256:{'ab' * 32}", '{"uid":"u1","width":96}')
    assert {row["extra"] for row in others} == {None}
    spans = [content[row["source_offset"] :][: row["image_bytes"]] for row in batch.candidates.to_pylist()]
    assert spans == [members[name] for name in ("a/1.jpg", "a/2.png", "3.webp", "4.jpg")]


def test_the_table_beside_a_tar_tells_what_it_lacks(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"7.jpg": picture(7), "7.txt": b"a dog", "8.jpg": picture(8)})
    table = {"key": ["7", "8"], "url": ["http://a.example/7", "http://a.example/8"], "caption": ["x", "a cat"]}
    pq.write_table(pa.table(table), tmp_path / "0.parquet")
    rows, dropped = rows_of(iter(read(tmp_path / "0.tar")))
    assert [row[:2] for row in rows] == [("http://a.example/7", "a dog"), ("http://a.example/8", "a cat")]
    assert not dropped


@pytest.mark.parametrize("cut", [1, 600, 1_500, 4_000])
def test_a_tar_that_breaks_off_keeps_what_was_before(tmp_path: Path, cut: int) -> None:
    members: dict[str, bytes] = {}
    for n in range(6):
        members |= sample(str(n), picture(n), "a dog", url=f"http://a.example/{n}.jpg")
    write_tar(tmp_path / "0.tar", members)
    whole = (tmp_path / "0.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "0.tar").write_bytes(whole[:-cut])
    rows, dropped = rows_of(iter(read(tmp_path / "0.tar")))
    assert [row[0] for row in rows] == [f"http://a.example/{n}.jpg" for n in range(5)]
    assert dropped[Reason.DAMAGED_FILE] <= 1
    assert dropped.total() == 1


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_file_that_is_no_tar(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    assert rows_of(iter(read(tmp_path / "0.tar"))) == ([], Counter({Reason.DAMAGED_FILE: 1}))


def test_files_beside_the_tars_are_refused_with_the_pattern_to_write(tmp_path: Path) -> None:
    write_tar(tmp_path / "in/0.tar", sample("1", picture(1), "a dog", url="http://a.example/1.jpg"))
    (tmp_path / "in/0_stats.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"sources\.paths: in/0_stats\.json is not named \.tar: .* write in/\*\.tar"):
        build(tmp_path, "in/*", ["dog"])


@pytest.mark.parametrize(
    "facts", [b'{"a": [[[{"b": 1}]]]}', b"[]", b"7", b'{"url": 3, "caption": {}, "sha256": 1}', b"\xff"]
)
def test_strange_json_is_no_traceback(tmp_path: Path, facts: bytes) -> None:
    write_tar(tmp_path / "0.tar", {"1.jpg": picture(1), "1.txt": b"a dog", "1.json": facts})
    rows, dropped = rows_of(iter(read(tmp_path / "0.tar", keep=["a"])))
    assert len(rows) + dropped.total() == 1
    assert dropped[Reason.DAMAGED_RECORD] == (facts[:1] != b"{")
    assert all(row[0] == named_by_content(hashlib.sha256(picture(1)).digest()) for row in rows)


def test_broken_images_have_reasons_and_an_image_without_a_url_is_kept(tmp_path: Path) -> None:
    members = (
        sample("1", picture(1)[:-200], "a dog", url="http://a.example/1.jpg")
        | sample("2", b"<html>", "a dog", url="http://a.example/2.jpg")
        | {"3.png": encode("PNG", 3), "3.txt": b"a dog"}
        | sample("4", picture(4), "a dog", url="http://a.example/4.jpg")
        | sample("5", picture(4), "a dog here", url="http://a.example/4.jpg")
    )
    write_tar(tmp_path / "in/0.tar", members)
    kept = build(tmp_path, "in/*.tar", ["dog"], image_size=64)
    assert {facts["url"][:5] for facts, _ in kept.values()} == {"ni://", "http:"}
    table = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "work/shards").glob("*.parquet"))])
    reasons = Counter(table["reason"].to_pylist())
    assert reasons == Counter(
        {None: 2, Reason.BROKEN_IMAGE: 1, Reason.NOT_AN_IMAGE: 1, Reason.OTHER_CAPTION_OF_SAME_IMAGE: 1}
    )
    assert max(facts["width"] for facts, _ in kept.values()) == 77  # 96 x 80, shrunk to a shorter side of 64
