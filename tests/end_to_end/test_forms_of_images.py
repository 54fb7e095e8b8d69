"""Sets of other forms than JPEGs of 256 px: everything that reads a set reads them."""

import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.image_server import serve_images
from support.recorded_web import image_url, make_images, make_project, make_web_project, picture, tree

import pipeline
from dedup.decode import decode_rgb
from pipeline.cli.main import main
from trainer.shards import ShardReader
from trainer.tar_index import index_tar

pytestmark = pytest.mark.slow

FORMS = [
    {"resize": "center_crop", "format": "webp"},
    {"resize": "pad", "format": "png"},
    {"resize": "none", "format": "original"},
]
each_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: form["format"])
written_or_kept = pytest.mark.parametrize("form", [FORMS[0], FORMS[2]], ids=lambda form: form["format"])


def run(command: str, config: Path, *options: str) -> None:
    assert main([*command.split(), "-c", str(config), "--quiet", *options]) == 0


def samples(work: Path) -> dict[str, dict]:
    rows = [row for path in sorted((work / "shards").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["uid"]: row for row in rows if row["status"] == "success"}


def images_of(work: Path, folder: str = "shards") -> dict[str, tuple[str, bytes]]:
    """Return uid -> (suffix, bytes) of every image in the tars."""
    found = {}
    for path in sorted((work / folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                uid, _, suffix = member.name.partition(".")
                if suffix not in ("txt", "json"):
                    found[uid] = suffix, tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@each_form
def test_every_reader_reads_the_set(form: dict[str, str], tmp_path: Path, capsys) -> None:
    config = make_project(tmp_path / "set", 80, parts=2, **form)
    config.write_text(config.read_text() + "[filters]\nsingle_colour = true\n")
    work = config.parent / "work"
    run("build", config)
    assert main(["verify", "-c", str(config)]) == 0
    rows, images = samples(work), images_of(work)
    assert rows.keys() == images.keys()
    assert len(rows) > 30
    for uid, row in rows.items():
        suffix, image = images[uid]
        assert suffix == ("jpg" if form["format"] == "original" else form["format"])
        assert decode_rgb(image).shape[1::-1] == (row["width"], row["height"])
        assert (form["format"] == "original") == (hashlib.sha256(image).hexdigest() == row["sha256"])
        with (work / "shards" / row["shard"]).open("rb") as tar:
            tar.seek(row["offset"])
            assert tar.read(row["size"]) == image
    trained = set()
    for path in (work / "shards").glob("*.tar"):
        with path.open("rb") as tar:
            reader = ShardReader(tar, index_tar(tar, path.name))
            for number in range(len(reader)):
                assert reader.read(number, with_json=True).image == images[reader.key(number)][1]
                trained.add(reader.key(number))
    assert trained == rows.keys()
    assert pipeline.open_set(str(work)).samples(["uid"]).num_rows == len(rows)
    assert main(["peek", "-c", str(config), "-n", "5", "--page", str(tmp_path / "peek.html")]) == 0
    assert (tmp_path / "peek.html").read_text().count("data:image/jpeg;base64,/9j/") == 5

    again = make_project(tmp_path / "again", 10, parts=2, **form)
    text = again.read_text().replace("cap = 15", "cap = 1000").replace("archives = ['web-*.warc.gz']", "archives = []")
    shards = f'kind = "webdataset"\npaths = ["{work}/shards/*.tar"]'
    again.write_text(text.replace('kind = "warc"\npaths = ["web-*.warc.gz"]', shards))
    run("build", again)
    taken = samples(again.parent / "work")
    assert taken.keys() == rows.keys()
    assert all(taken[uid]["sha256"] == rows[uid]["sha256"] for uid in rows)
    if form["format"] == "original":
        assert images_of(again.parent / "work") == images

    number = next(n for n in range(80) if any(row["url"] == image_url(n) for row in rows.values()))
    (config.parent / "photo.jpg").write_bytes(picture(number))
    (config.parent / "request.txt").write_text("image:photo.jpg\n")
    run(f"takedown {config.parent / 'request.txt'}", config)
    gone = rows.keys() - samples(work).keys()
    assert gone
    assert {rows[uid]["url"] for uid in gone} >= {image_url(number)}
    assert {uid: images[uid] for uid in rows.keys() - gone} == images_of(work)
    assert main(["verify", "-c", str(config)]) == 0


@written_or_kept
def test_a_retry_and_another_plan_use_what_was_fetched(form: dict[str, str], tmp_path: Path) -> None:
    down = {image_url(number) for number in range(0, 60, 4)}
    with serve_images(make_images(60)) as web:
        whole = make_web_project(tmp_path / "whole", 60, web, retries=0, **form)
        run("build", whole)
        config = make_web_project(tmp_path / "set", 60, web, retries=0, **form)
        web.unavailable = down
        run("build", config)
        web.unavailable = set()
        web.requests.clear()
        run("build --retry http_server_error --retry-older-than 0s", config)
        assert {url for url in web.requests if not url.endswith("robots.txt")} <= down
        folders = ("fetched", "dedup", "shards")
        assert tree(config.parent / "work", *folders) == tree(whole.parent / "work", *folders)
        before = set(images_of(config.parent / "work", "fetched").values())
        web.requests.clear()
        config.write_text(config.read_text().replace("cap = 15", "cap = 4"))
        run("build", config)
        assert not [url for url in web.requests if not url.endswith("robots.txt")]
        assert set(images_of(config.parent / "work").values()) <= before


@written_or_kept
def test_sets_are_merged(form: dict[str, str], tmp_path: Path) -> None:
    configs = []
    for name in ("one", "two"):
        config = make_project(tmp_path / name, 40, parts=2, **form)
        text = config.read_text()
        config.write_text(text.replace('paths = ["web-*.warc.gz"]', f'paths = ["web-{len(configs)}.warc.gz"]'))
        run("build", config)
        configs.append(config)
    merged = make_project(tmp_path / "merged", 40, parts=2, **form)
    run(f"merge {configs[0].parent / 'work'} {configs[1].parent / 'work'}", merged)
    images = images_of(merged.parent / "work")
    parts = [images_of(config.parent / "work", "fetched") for config in configs]
    assert images
    assert images.items() <= (parts[0] | parts[1]).items()
    assert {decode_rgb(io.BytesIO(image).getvalue()).ndim for _, image in images.values()} == {3}
