"""Common Crawl by name, from a mirror that throttles, resets and truncates."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.crawl_mirror import CRAWLS, CrawlMirror, lists_of, real_files
from support.s3_stand_in import S3StandIn

from pipeline.beam.options import parse_beam_options
from pipeline.config import Config
from pipeline.config.sources import SourceConfig
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build
from pipeline.engine.units import Marker, add_counts
from pipeline.engine.workspace import Workspace
from pipeline.errors import ConfigError, UserError
from pipeline.records import Reason
from pipeline.sources import common_crawl
from pipeline.sources.common_crawl import choose
from pipeline.sources.range_stream import Pacer, RangeStream, SourceUnavailable
from pipeline.stages.pairs import run_pairs
from queries.allowlist import Allowlist, import_allowlist

WORDS = ("photo", "previous", "creative commons license", "biquipedia", "微博", "in")


@pytest.fixture
def mirror(shared_data: Path) -> Iterator[CrawlMirror]:
    with CrawlMirror(real_files(shared_data)).running() as running:
        yield running


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Wait for nothing; return what was waited for."""
    waits: list[float] = []
    pacer = Pacer(sleep=waits.append)
    monkeypatch.setattr(common_crawl, "_pacer", lambda host: pacer)
    return waits


def run(folder: Path, mirror: CrawlMirror, *options: str, **source: Any) -> dict[str, Marker]:
    (folder / "words.txt").write_text("\n".join(WORDS))
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    table = {"kind": "common-crawl", "crawls": list(CRAWLS), "base_url": mirror.url} | source
    config = Config.model_validate(
        {"workspace": "work", "allowlist": {"path": "queries.parquet"}, "sources": [table], "seed": 3}
    )
    build = Build(Workspace(str(folder / "work")), parse_beam_options(list(options)), Progress(None))
    path = str(folder / "queries.parquet")
    return run_pairs(build, config, folder, Allowlist.load(path), path)


def pairs_of(folder: Path, markers: dict[str, Marker]) -> pa.Table:
    names = [name for marker in markers.values() for name in marker.outputs if name.startswith("pairs/")]
    table = pa.concat_tables([pq.read_table(folder / "work" / name) for name in names])
    return table.sort_by([(name, "ascending") for name in ("uid", "source", "source_offset")])


@pytest.mark.parametrize("files", ["wat", "warc"])
def test_an_undisturbed_run_requests_each_byte_once_over_few_connections(
    tmp_path: Path, mirror: CrawlMirror, files: str
) -> None:
    markers = run(tmp_path, mirror, files=files, connections=1)
    sent = {path: ranges for path, ranges in mirror.bytes_sent.items() if f"/{files}/" in path}
    assert sent == {path: [(0, len(body))] for path, body in mirror.files.items() if f"/{files}/" in path}
    lists = [path for path in mirror.bytes_sent if path.endswith("paths.gz")]
    assert all(len(mirror.bytes_sent[path]) == 1 for path in lists)
    assert mirror.most_connections == 1
    assert mirror.agents >= {"wit-pipeline"}
    table = pairs_of(tmp_path, markers)
    assert table.num_rows > (1 if files == "wat" else 100)
    assert set(table["source"].to_pylist()) <= set(sent)
    assert table["captured_at"].null_count == 0
    assert run(tmp_path, mirror, files=files, connections=1) == markers
    assert sum(map(len, mirror.bytes_sent.values())) == len(mirror.bytes_sent)


@pytest.fixture
def bucket(mirror: CrawlMirror, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3StandIn]:
    """Common Crawl's bucket on this machine, and credentials for it, of somebody who works in another region."""
    with S3StandIn({f"commoncrawl/{path}": body for path, body in mirror.files.items()}).running() as running:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, os.devnull)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield running
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_the_bucket_is_read_with_signed_requests_for_its_region(
    tmp_path: Path, mirror: CrawlMirror, bucket: S3StandIn
) -> None:
    (tmp_path / "https").mkdir()
    (tmp_path / "s3").mkdir()
    expected = pairs_of(tmp_path / "https", run(tmp_path / "https", mirror, files="warc"))
    markers = run(tmp_path / "s3", mirror, files="warc", base_url="s3://commoncrawl")
    assert pairs_of(tmp_path / "s3", markers).equals(expected)
    assert set(bucket.regions) == {"us-east-1"}

    lost = next(path for path in mirror.files if "2020-34" in path and "/warc/" in path)
    bucket.denied.add(f"commoncrawl/{lost}")
    (tmp_path / "again").mkdir()
    again = run(tmp_path / "again", mirror, files="warc", base_url="s3://commoncrawl")
    assert add_counts(again.values())[Reason.SOURCE_UNAVAILABLE] == 1


def test_without_credentials_the_bucket_is_one_line(
    tmp_path: Path, mirror: CrawlMirror, bucket: S3StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(ConfigError, match=r"s3://commoncrawl/.*paths\.gz: .*credentials"):
        run(tmp_path, mirror, files="warc", base_url="s3://commoncrawl")
    assert bucket.regions == []


@pytest.mark.slow
def test_workers_share_the_budget_of_connections(tmp_path: Path, mirror: CrawlMirror) -> None:
    base = {path: body for path, body in mirror.files.items() if "2014-35" in path and "/wat/" in path}
    ((path, body),) = base.items()
    mirror.files |= {path.replace("-00006-", f"-{n:05d}-"): body for n in range(12)}
    mirror.files |= lists_of(mirror.files)
    options = ("--direct_running_mode=multi_processing", "--direct_num_workers=4")
    markers = run(tmp_path, mirror, *options, crawls=["CC-MAIN-2014-35"], connections=2)
    assert len(markers) == 12
    assert mirror.most_connections <= 2
    assert all(len(ranges) == 1 for ranges in mirror.bytes_sent.values())


def test_what_is_throttled_reset_and_truncated_is_complete_in_the_end(
    tmp_path: Path, mirror: CrawlMirror, patience: list[float]
) -> None:
    (tmp_path / "calm").mkdir()
    (tmp_path / "rough").mkdir()
    calm = pairs_of(tmp_path / "calm", run(tmp_path / "calm", mirror, files="warc"))
    mirror.bytes_sent.clear()
    for path in mirror.files:
        mirror.faults[path] = [503, "reset", 403, 403, "reset", 429, 500, "reset"]
    rough = run(tmp_path / "rough", mirror, files="warc")
    assert pairs_of(tmp_path / "rough", rough).equals(calm)
    for path, ranges in mirror.bytes_sent.items():
        ends = [0, *(end for _, end in ranges)]
        assert [start for start, _ in ranges] == ends[:-1], "resumed at the byte that comes next"
        assert ends[-1] == len(mirror.files[path])
    assert max(patience) > 2


def test_a_file_that_fails_is_counted_and_tried_again_by_the_next_run(tmp_path: Path, mirror: CrawlMirror) -> None:
    lost = next(path for path in mirror.files if "2020-34" in path and "/warc/" in path)
    mirror.faults[lost] = ["reset", *[503] * 8]
    first = run(tmp_path, mirror, files="warc")
    (failed,) = [marker for marker in first.values() if marker.about == lost]
    assert failed.counts == {"inputs": 1, "kept": 0, Reason.SOURCE_UNAVAILABLE: 1}
    others = {name: marker for name, marker in first.items() if marker.about != lost}
    mirror.bytes_sent.clear()
    second = run(tmp_path, mirror, files="warc")
    assert set(mirror.bytes_sent) == {lost}
    assert {name: second[name] for name in others} == others
    assert add_counts(second.values()).get(Reason.SOURCE_UNAVAILABLE, 0) == 0


def test_no_file_at_all_stops_the_build(tmp_path: Path, mirror: CrawlMirror) -> None:
    for path in mirror.files:
        if path.endswith("warc.gz"):
            mirror.files[path] = None  # type: ignore[assignment]
    with pytest.raises(UserError, match="3 of 3 source files could not be read, such as crawl-data/"):
        run(tmp_path, mirror, files="warc")


def test_the_latest_crawls_stay_the_same_while_a_build_is_resumed(tmp_path: Path, mirror: CrawlMirror) -> None:
    markers = run(tmp_path, mirror, crawls="latest:1", files="warc")
    assert [marker.about.split("/")[1] for marker in markers.values()] == [CRAWLS[0]]
    mirror.files["collinfo.json"] = b"[]"
    assert run(tmp_path, mirror, crawls="latest:1", files="warc") == markers
    with pytest.raises(ConfigError, match=r"collinfo\.json: it lists no crawls"):
        run(tmp_path, mirror, crawls="latest:2", files="warc")


@pytest.mark.parametrize("content", [b"", b"no gzip", None])
def test_a_list_that_is_none_is_named(tmp_path: Path, mirror: CrawlMirror, content: bytes | None) -> None:
    mirror.files["crawl-data/CC-MAIN-2024-22/wat.paths.gz"] = content  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"CC-MAIN-2024-22/wat\.paths\.gz: "):
        run(tmp_path, mirror, crawls=["CC-MAIN-2024-22"])


def test_a_file_that_changes_while_it_is_read_is_not_mixed(mirror: CrawlMirror) -> None:
    import requests

    mirror.files["a"], mirror.faults["a"] = b"1" * 1_000_000, ["reset"]
    with requests.Session() as session, RangeStream(session, f"{mirror.url}/a", Pacer(sleep=lambda s: None)) as stream:
        assert stream.read(10) == b"1" * 10
        mirror.files["a"] = b"2" * 1_000_000
        with pytest.raises(SourceUnavailable, match="changed"):
            stream.read()


def test_seeking_and_ranges_beyond_the_end(mirror: CrawlMirror) -> None:
    import requests

    mirror.files["a"] = bytes(range(256)) * 100
    with requests.Session() as session, RangeStream(session, f"{mirror.url}/a", Pacer(sleep=lambda s: None)) as stream:
        stream.seek(25_000)
        assert stream.read() == mirror.files["a"][25_000:]
        stream.seek(5)
        assert (stream.read(3), stream.tell()) == (bytes([5, 6, 7]), 8)


def test_the_pace_slackens_to_minutes_and_quickens_again() -> None:
    pacer, waits = Pacer(), []
    for _ in range(12):
        pacer.slow_down()
        waits.append(pacer.delay_s)
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 300
    pacer.slow_down(at_least_s=600)
    assert pacer.delay_s == 600
    for _ in range(12):
        pacer.speed_up()
    assert pacer.delay_s == 0


names = st.sets(st.text("abc0", min_size=1, max_size=4), max_size=60).map(sorted)


@given(names, st.integers(0, 2**63 - 1), st.floats(0.001, 1), st.floats(0.001, 1), st.randoms(use_true_random=False))
def test_a_sample_has_its_size_and_contains_the_smaller_ones(paths, seed, one, other, random) -> None:
    small, large = sorted((one, other))
    turned = list(paths)
    random.shuffle(turned)
    few, many = choose(paths, seed, small, None), choose(turned, seed, large, None)
    assert set(few) <= set(many) <= set(paths)
    assert (len(few), len(many)) == (math.ceil(small * len(paths)), math.ceil(large * len(paths)))
    assert few == sorted(set(few))
    for limit in (0, 1, 3):
        assert choose(paths, seed, None, limit) == choose(turned, seed, 1.0, limit)
        assert set(choose(paths, seed, None, limit)) <= set(choose(paths, seed, None, limit + 1))


def test_every_file_is_as_likely_as_any_other() -> None:
    paths = [f"segment/{n:05d}" for n in range(10)]
    drawn = [path for seed in range(2_000) for path in choose(paths, seed, 0.3, None)]
    counts = [drawn.count(path) for path in paths]
    assert sum(counts) == 6_000
    assert sum((count - 600) ** 2 / 600 for count in counts) < 27.9  # chi-square, 9 degrees of freedom: 0.1 %


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "common-crawl"}, "needs crawls"),
        ({"kind": "common-crawl", "crawls": ["2024-22"]}, "CC-MAIN-"),
        ({"kind": "common-crawl", "crawls": "latest"}, "latest:"),
        ({"kind": "common-crawl", "crawls": ["CC-MAIN-2024-22"], "paths": ["x"]}, "paths is a key of url-table"),
        ({"kind": "common-crawl", "crawls": ["CC-MAIN-2024-22"], "sample": 0.0}, "greater than 0"),
        ({"kind": "common-crawl", "crawls": ["CC-MAIN-2024-22"], "base_url": "mirror"}, "must be a URL"),
        ({"kind": "wat", "paths": ["x"], "limit": 3}, "limit is a key of common-crawl"),
        ({"kind": "wat"}, "needs paths"),
    ],
)
def test_a_source_that_is_written_wrong_is_named(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig.model_validate(source)
