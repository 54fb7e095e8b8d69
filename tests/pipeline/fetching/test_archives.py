"""Recorded answers: found by URL, in any kind of WARC file, and treated like answers from the network."""

import gzip
import io
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType
from support.fetching import config, fetch, plan_of
from support.hostile_server import GOOD, GZIP_BOMB, HostileServer, head, picture
from support.shared_data import SHARED

from pipeline.errors import UserError
from pipeline.fetching.archives import ArchiveIndex, RecordedResponse, build_archive_index
from pipeline.fetching.fetcher import Fetcher
from pipeline.fetching.outcome import FetchFailure
from pipeline.records import Reason
from pipeline.web.urls import normalize_url

LIMIT = 1_000_000


def record(url: str, http: bytes, kind: str = "response", **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Record-ID: <urn:uuid:{hash(url)}>\r\n"
        f"{lines}Content-Type: application/http; msgtype={kind}\r\nContent-Length: {len(http)}\r\n\r\n"
    ).encode() + (http + b"\r\n\r\n")


def response(url: str, body: bytes = GOOD, status: int = 200, **headers: str) -> bytes:
    named = {"Content-Length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    return record(url, head(status, named) + body)


CHUNKED = head(200, {"Transfer-Encoding": "chunked"}) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
RECORDS = [
    record("http://a.example/ok.jpg", b"GET /ok.jpg HTTP/1.1\r\nHost: a.example\r\n\r\n", kind="request"),
    response("http://a.example/ok.jpg"),
    record("http://a.example/chunked.jpg", CHUNKED),
    response("http://a.example/gzip.jpg", gzip.compress(GOOD), Content_Encoding="gzip"),
    response("http://a.example/bomb", GZIP_BOMB, Content_Encoding="gzip"),
    response("HTTP://A.example:80/x/../spelled.jpg#top"),
    response("http://a.example/moved", b"", 301, Location="/ok.jpg"),
    response("http://a.example/moved-away", b"", 302, Location="http://live.example/ok.jpg"),
    response("http://a.example/circle", b"", 302, Location="/circle"),
    response("http://a.example/gone.jpg", b"", 404),
    response("http://a.example/busy.jpg", b"", 503),
    response("http://a.example/noai.jpg", X_Robots_Tag="noai"),
    record("http://a.example/cut.jpg", head(200, {}) + GOOD[:500], WARC_Truncated="length"),
    response("http://a.example/twice.jpg", b"", 404),
    response("http://a.example/twice.jpg", picture(seed=1)),
    response("http://a.example/twice.jpg", picture(seed=2)),
    response("http://10.0.0.1/private.jpg"),
    record("dns:a.example", b"1.2.3.4"),
]

RESPONSES = {
    "http://a.example/ok.jpg": "success",
    "http://a.example/chunked.jpg": "success",
    "http://a.example/gzip.jpg": "success",
    "http://a.example/spelled.jpg": "success",
    "http://a.example/moved": "success",
    "http://a.example/twice.jpg": "success",
    "http://a.example/moved-away": Reason.NOT_IN_ARCHIVES,
    "http://a.example/busy.jpg": Reason.NOT_IN_ARCHIVES,
    "http://b.example/": Reason.NOT_IN_ARCHIVES,
    "http://a.example/bomb": Reason.TOO_LARGE,
    "http://a.example/circle": Reason.TOO_MANY_REDIRECTS,
    "http://a.example/gone.jpg": Reason.HTTP_NOT_FOUND,
    "http://a.example/noai.jpg": Reason.OPTED_OUT,
    "http://a.example/cut.jpg": Reason.TRUNCATED,
    "http://10.0.0.1/private.jpg": Reason.PRIVATE_ADDRESS,
}


def look_up(index: ArchiveIndex, url: str, max_bytes: int = LIMIT) -> RecordedResponse | None:
    return index.get(url, max_bytes, lambda status, _: status == 200)


def write_archive(folder: Path, form: str) -> str:
    """Write `RECORDS` to a file, compressed by record, as a whole, or not at all."""
    path = folder / f"archive.warc{'' if form == 'plain' else '.gz'}"
    if form == "by record":
        path.write_bytes(b"".join(gzip.compress(one) for one in RECORDS))
    else:
        content = b"".join(RECORDS)
        path.write_bytes(content if form == "plain" else gzip.compress(content))
    return str(path)


@pytest.fixture(params=["by record", "as a whole", "plain"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> ArchiveIndex:
    build_archive_index([write_archive(tmp_path, request.param)], tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "index")  # it may be moved
    return ArchiveIndex(tmp_path / "index")


def test_answers_come_from_the_archives_alone(index: ArchiveIndex) -> None:
    settings = config(network=False, allow_private_hosts=False)
    with Fetcher(settings, archives=index) as fetcher:
        result = fetch(fetcher, plan_of(list(RESPONSES)))
    assert dict(zip(RESPONSES, result.reasons, strict=True)) == RESPONSES


def test_the_network_answers_what_the_archives_do_not_have(index: ArchiveIndex, server: HostileServer) -> None:
    urls = ["http://a.example/ok.jpg", "http://a.example/moved-away", "http://live.example/ok.png"]
    with Fetcher(config(gateway=server.gateway), archives=index) as fetcher:
        result = fetch(fetcher, plan_of(urls))
    assert result.reasons == ["success"] * 3
    assert set(server.hits) == {f"live.example/{path}" for path in ("robots.txt", "ok.jpg", "ok.png")}


def test_the_first_good_capture_counts(index: ArchiveIndex) -> None:
    answer = look_up(index, "http://a.example/twice.jpg")
    assert answer is not None
    assert answer.body == picture(seed=1)
    assert look_up(index, "http://a.example/never") is None


def test_bodies_have_a_limit(index: ArchiveIndex) -> None:
    with pytest.raises(FetchFailure, match="more than 100 bytes"):
        look_up(index, "http://a.example/ok.jpg", 100)


def damaged_in(number: int, form: str) -> bytes:
    """Return an archive of five images with two bytes of one record turned over."""
    records = [response(f"http://a.example/{n}.png", picture(seed=n, image_format="PNG")) for n in range(5)]
    members = [gzip.compress(one) if form == "by record" else one for one in records]
    place = members[number].index(b"Content-Length") if form == "plain" else len(members[number]) // 2
    spoilt = bytearray(members[number])
    spoilt[place : place + 2] = bytes(byte ^ 0xFF for byte in spoilt[place : place + 2])
    return b"".join([*members[:number], bytes(spoilt), *members[number + 1 :]])


@pytest.mark.parametrize("form", ["by record", "plain"])
def test_a_damaged_record_is_left_out_and_the_others_are_found(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(damaged_in(2, form))
    build_archive_index([str(path)], tmp_path / "index")
    index = ArchiveIndex(tmp_path / "index")
    answers = [look_up(index, f"http://a.example/{n}.png") for n in range(5)]
    assert [answer is not None for answer in answers] == [True, True, False, True, True]
    assert [answer.body == picture(seed=n, image_format="PNG") for n, answer in enumerate(answers) if answer] == [
        True
    ] * 4
    assert f"{path}: 1 records or more are left out: damaged" in caplog.text


@pytest.mark.parametrize("form", ["by record", "as a whole", "plain"])
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(form: str, tmp_path: Path) -> None:
    path = Path(write_archive(tmp_path, form))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    build_archive_index([str(path)], tmp_path / "index")
    answer = look_up(ArchiveIndex(tmp_path / "index"), "http://a.example/ok.jpg")
    assert answer is not None
    assert answer.body == GOOD


def test_a_body_shorter_than_announced_is_truncated(tmp_path: Path) -> None:
    http = head(200, {"Content-Length": str(len(GOOD))}) + GOOD[:-100]
    (tmp_path / "a.warc").write_bytes(record("http://a.example/short.jpg", http))
    build_archive_index([str(tmp_path / "a.warc")], tmp_path / "index")
    with pytest.raises(FetchFailure, match="shorter than announced") as caught:
        look_up(ArchiveIndex(tmp_path / "index"), "http://a.example/short.jpg")
    assert caught.value.reason is Reason.TRUNCATED


def test_a_body_that_is_not_wanted_may_be_missing(tmp_path: Path) -> None:
    headers = {"Content-Length": "154", "Location": "/new.jpg"}
    moved, gone = record("http://a.example/old.jpg", head(301, headers) + b"<html>"), "http://a.example/gone.jpg"
    (tmp_path / "a.warc").write_bytes(moved + record(gone, head(404, headers)))
    build_archive_index([str(tmp_path / "a.warc")], tmp_path / "index")
    index = ArchiveIndex(tmp_path / "index")
    answer = look_up(index, "http://a.example/old.jpg")
    assert answer is not None
    assert (answer.status, answer.headers["location"], answer.body) == (301, "/new.jpg", None)
    with Fetcher(config(network=False), archives=index) as fetcher:
        assert fetch(fetcher, plan_of([gone])).reasons == [Reason.HTTP_NOT_FOUND]


def test_an_archive_that_changed_after_it_was_indexed_answers_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(response("http://a.example/0.jpg") + response("http://a.example/1.jpg"))
    build_archive_index([str(path)], tmp_path / "index")
    path.write_bytes(response("http://a.example/1.jpg") + response("http://a.example/0.jpg"))
    with pytest.raises(FetchFailure, match="archive record"):
        look_up(ArchiveIndex(tmp_path / "index"), "http://a.example/0.jpg")


@pytest.mark.parametrize(
    "content", [b"<html>no archive</html>", gzip.compress(b"url,caption\n", mtime=0), b"\x1f\x8b broken"]
)
def test_what_is_no_archive_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"fetch\.archives: .*a\.warc\.gz: not a WARC file: no records found"):
        build_archive_index([str(tmp_path / "a.warc.gz")], tmp_path / "index")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fetch\.archives: .*missing\.warc\.gz"):
        build_archive_index([str(tmp_path / "missing.warc.gz")], tmp_path / "index")


def test_archives_without_their_index_are_refused() -> None:
    with pytest.raises(ValueError, match="no index"):
        Fetcher(config(archives=("*.warc.gz",)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared test data")
@pytest.mark.parametrize("name", ["closed_world_2008", "books_toscrape", "wikipedia_2012_a"])
def test_real_archives_are_found_again_whole(name: str, tmp_path: Path) -> None:
    path = SHARED / "web" / f"{name}.warc.gz"
    build_archive_index([str(path)], tmp_path / "index")
    index = ArchiveIndex(tmp_path / "index")
    expected: dict[str, bytes] = {}
    content = io.BytesIO(gzip.decompress(path.read_bytes()))
    for one in ArchiveIterator(content, record_types=WarcRecordType.response, auto_decode="none"):
        url = normalize_url((one.headers.get("WARC-Target-URI") or "").strip("<>"))
        headers = one.http_headers
        if url is not None and headers is not None and headers.status_code == 200 and "chunked" not in str(headers):
            expected.setdefault(url, one.reader.read())
    assert expected
    for url, body in expected.items():
        answer = look_up(index, url, 30_000_000)
        assert answer is not None
        assert answer.body == body
