"""Candidates from WAT files, by the quick way through their JSON and the slow one."""

import gzip
import io
import json
import tarfile
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.warc_files import Rows, gzipped, image_link, record, rows_of, wat

from pipeline.config import PairsConfig
from pipeline.records import Reason
from pipeline.sources import wat as wat_module
from pipeline.sources.batch import clean_text
from pipeline.sources.warc import read_warc
from pipeline.sources.wat import read_wat
from pipeline.web import warc_records

PAGE_URL = "http://a.example/dir/page.html"


def read(*records: bytes) -> tuple[Rows, Counter[Reason]]:
    return rows_of(read_wat(io.BytesIO(gzipped(records)), PairsConfig()))


def other_link(**keys: str) -> dict[str, str]:
    return {"path": "A@/href", "url": "/x", **keys}


def test_image_links_with_their_texts():
    links = [other_link(text="IMG@/src"), image_link("../a.jpg", alt=" A  dog ", title="Rex"), image_link("b.jpg")]
    rows, dropped = read(wat(links))
    assert rows == [
        ("http://a.example/a.jpg", "A dog", "alt", PAGE_URL),
        ("http://a.example/a.jpg", "Rex", "title", PAGE_URL),
    ]
    assert dropped == Counter({Reason.NO_CAPTION: 1})


def test_reasons():
    links = [
        image_link("a.jpg", alt=""),
        image_link("a.jpg", alt="x", title="x"),
        image_link("", alt="x"),
        image_link("data:image/png;base64,AA", alt="x"),
        image_link("a.jpg", alt="y" * 10_001),
    ]
    rows, dropped = read(wat(links))
    assert [row[1] for row in rows] == ["x"]
    assert dropped == Counter(
        {
            Reason.NO_CAPTION: 1,
            Reason.REPEATED_TEXT: 1,
            Reason.NO_URL: 1,
            Reason.BAD_URL: 1,
            Reason.CAPTION_TOO_LONG: 1,
        }
    )


def test_addresses_start_at_the_base():
    rows, _ = read(wat([image_link("a.jpg", alt="x")], base="/b/"), wat([image_link("a.jpg", alt="x")], base=""))
    assert [row[0] for row in rows] == ["http://a.example/b/a.jpg", "http://a.example/dir/a.jpg"]
    assert {row[3] for row in rows} == {PAGE_URL}


def test_references_that_older_files_keep_are_decoded():
    links = [image_link("a.jpg?x=1&amp;y=2&copy=3", alt="Caf&eacute; &quot;AT&T&quot; &#x1F600; &amp;lt; &notone;")]
    rows, _ = read(wat(links))
    assert rows[0][:2] == ("http://a.example/dir/a.jpg?x=1&y=2&copy=3", 'Café "AT&T" 😀 &lt; ¬one;')


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,", " :")])
def test_only_pages_answered_with_200_count(separators):
    links = [image_link("a.jpg", alt="x")]
    records = [wat(links, status=status, separators=separators) for status in ("404", "301", 404, "", "200", 200)]
    rows, dropped = read(*records)
    assert (len(rows), dropped) == (2, Counter())
    named = [raw.replace(b'"Version"', b'"Reason":"{}","Version"', 1) for raw in (records[0], records[4])]
    moved = [
        record("metadata", json.dumps(json.loads(raw.split(b"\r\n\r\n")[1]), sort_keys=True).encode()) for raw in named
    ]
    assert len(read(*moved)[0]) == 1


@pytest.mark.parametrize(
    ("options", "is_opted_out"),
    [
        ({"metas": [{"name": "robots", "content": "NoAI, noimageai"}]}, True),
        ({"metas": [{"content": "x"}, {"name": "Robots", "content": "noai"}]}, True),
        ({"metas": [{"name": "wit-pipeline", "content": "noml"}]}, True),
        ({"metas": [{"name": "Wit-Pipeline", "content": "none"}]}, True),
        ({"metas": [{"name": "GPTBot", "content": "noai"}]}, True),
        ({"metas": [{"content": "x"}, {"property": "ccbot", "content": "noindex"}]}, True),
        ({"metas": [{"name": "Kangaroo Bot", "content": "noai"}]}, True),
        ({"metas": [{"name": "gptbot", "content": "nofollow"}]}, False),
        ({"metas": [{"name": "gptbotanist", "content": "noai"}]}, False),
        ({"headers": {"X-Robots-Tag": "GPTBot: noai"}}, True),
        ({"headers": {"X-Robots-Tag": ["otherbot: noai, Kangaroo Bot: noindex"]}}, True),
        ({"headers": {"X-Robots-Tag": "noindex"}}, False),
        ({"metas": [{"name": "tdm-reservation", "content": "1"}]}, True),
        ({"metas": [{"name": "robots", "content": "noindex"}]}, False),
        ({"metas": [{"name": "description", "content": "noai"}]}, False),
        ({"headers": {"x-robots-tag": "no-ai"}}, True),
        ({"headers": {"X-Robots-Tag": ["nofollow", "noimageai"]}}, True),
        ({"headers": {"TDM-Reservation": "1"}}, True),
        ({"headers": {"content-usage": "train-ai=n"}}, True),
        ({"headers": {"Content-Signal": ["search=yes", "ai-train=no"]}}, True),
        ({"headers": {"Content-Usage": "train-ai=y"}}, False),
        ({"headers": {"X-Robots-Tag": "otherbot: noai"}}, False),
        ({"headers": {"Link": "noai"}}, False),
    ],
)
def test_a_page_opts_its_images_out(options, is_opted_out):
    links = [image_link("a.jpg", alt="x", title="y"), image_link("b.jpg")]
    raw = gzipped([wat(links, **options), wat([image_link("c.jpg", alt="noai")])])
    rows, dropped = rows_of(read_wat(io.BytesIO(raw), PairsConfig()))
    assert [row[1] for row in rows] == (["noai"] if is_opted_out else ["x", "y", "noai"])
    expected = Counter({Reason.OPTED_OUT: 2 * is_opted_out, Reason.NO_CAPTION: 1})
    assert +dropped == +expected


def test_half_an_emoji_costs_no_page():
    rows, dropped = read(record("metadata", wat_json(r'"alt":"dog \ud83d","title":"cat"')))
    assert [row[1] for row in rows] == ["dog", "cat"]
    assert dropped == Counter()


def wat_json(texts: str) -> bytes:
    link = '{"path":"IMG@/src","url":"a.jpg",' + texts + "}"
    metadata = '{"HTML-Metadata":{"Links":[' + link + "]}}"
    return ('{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":' + metadata + "}}}").encode()


@pytest.mark.parametrize(
    "texts",
    [
        '"alt":{"a":1}',
        '"alt":["x"],"title":5',
        '"alt":null,"n":1',
    ],
)
def test_texts_that_are_none(texts):
    rows, dropped = read(record("metadata", wat_json(texts)))
    assert (rows, dropped) == ([], Counter({Reason.NO_CAPTION: 1}))


@pytest.mark.parametrize(
    "block",
    [
        wat_json('"alt":"x')[:-1],
        b'{"path":"IMG@/src"',
        b'["path":"IMG@/src"]',
        b'{"Envelope":null,"path":"IMG@/src","n":1',
        b'{"Envelope":{"Payload-Metadata":{"HTTP-Response-Metadata":{"HTML-Metadata":{"Links":5}}}},"x":"IMG@/src"}',
        b'{"x":"IMG@/src","y":' + b"[" * 100_000,
    ],
)
def test_damaged_json_costs_one_row(block):
    rows, dropped = read(record("metadata", block), wat([image_link("a.jpg", alt="x")]))
    assert (len(rows), dropped) == (1, Counter({Reason.DAMAGED_RECORD: 1}))


def test_a_record_too_large_to_keep_whole_is_damaged(monkeypatch):
    monkeypatch.setattr(warc_records, "MAX_BLOCK_BYTES", 1_000)
    links = [image_link(f"{n}.jpg", alt=f"number {n}") for n in range(100)]
    rows, dropped = rows_of(read_wat(io.BytesIO(wat(links) + wat(links[:1])), PairsConfig()))
    assert (len(rows), dropped) == (1, Counter({Reason.DAMAGED_RECORD: 1}))


WORDS = st.text(st.sampled_from('{}[]",:\\/ab &;é\n') | st.characters(), max_size=12)
TEXTS = st.dictionaries(st.sampled_from(["alt", "title", "text", "rel", "Base", "path2"]), WORDS, max_size=3)
NESTED = st.fixed_dictionaries({}, optional={"alt": WORDS, "x": st.just({"y": "z"}), "n": st.integers(0, 9)})
LINKS = st.lists(
    st.one_of(
        st.builds(lambda a, b: {**a, "path": "IMG@/src", "url": "a.jpg", **b}, NESTED, NESTED),
        st.builds(lambda url, texts: image_link(url, **texts), WORDS, TEXTS),
        st.builds(lambda url, texts: {**texts, "url": url, "path": "IMG@/src"}, WORDS, TEXTS),
        st.builds(lambda texts: other_link(**texts), TEXTS),
        st.just(other_link(text='","path":"IMG@/src","alt":"no"}')),
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(LINKS, st.none() | WORDS)
@example([image_link("}", alt="a")], None)
@example([image_link("},", alt="a"), image_link("b.jpg", alt="ends so: ")], None)
@example([{"path": "IMG@/src", "}": "x", "url": "a.jpg", "alt": "b"}], None)
def test_the_quick_way_finds_what_the_slow_way_finds(links: list[dict[str, Any]], base: str | None):
    raw = wat(links, **({} if base is None else {"base": base}))
    quick = read(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wat_module, "_cut_out", lambda block, first, policy: None)
        slow = read(raw)
    assert quick == slow
    assert quick == read(wat(links, separators=(", ", ": "), **({} if base is None else {"base": base})))


@given(LINKS)
def test_the_account_closes(links: list[dict[str, Any]]):
    rows, dropped = read(wat(links))
    texts = [(link.get("alt", ""), link.get("title", "")) for link in links if link["path"] == "IMG@/src"]
    stated = sum(max(1, sum(bool(clean_text(wat_module._unescape(text))) for text in pair)) for pair in texts)
    assert len(rows) + dropped.total() == stated


@pytest.mark.parametrize(
    "link",
    [
        {"alt": "{", "path": "IMG@/src", "url": "a.jpg"},
        {"alt": "dog", "x": {"y": "z"}, "path": "IMG@/src", "url": "a.jpg"},
        {"path": "IMG@/src", "url": "a.jpg", "x": {"y": "z"}, "alt": "dog"},
        {"path": "IMG@/src", "url": 'a"}', "alt": "dog"},
        {"path": "IMG@/src", "url": "a.jpg", "n": 1},
    ],
)
def test_braces_that_are_not_what_they_seem(link):
    rows, dropped = read(wat([link, image_link("b.jpg", alt="cat")]))
    assert [row[1] for row in rows] == [*([link["alt"]] if "alt" in link else []), "cat"]
    assert dropped == ({} if "alt" in link else {Reason.NO_CAPTION: 1})


def test_the_quick_way_is_taken(monkeypatch):
    monkeypatch.setattr(wat_module, "_parse", None)
    rows, _ = read(wat([other_link(text='say "IMG"'), image_link("a.jpg", alt='a "dog"'), image_link("b.jpg")]))
    assert [row[1] for row in rows] == ['a "dog"']


# Real files


def test_wat_and_warc_of_one_crawl_agree(shared_data):
    with tarfile.open(shared_data / "web" / "cc_main_2014_35_warc_wat_wet.tar.gz") as archive:
        names = {name.rpartition(".")[2]: name for name in archive.getnames()}
        from_wat, dropped = rows_of(read_wat(archive.extractfile(names["wat"]), PairsConfig()))
        from_warc, _ = rows_of(read_warc(archive.extractfile(names["warc"]), PairsConfig()))
    pages = {row[3] for row in from_wat}
    assert len(from_wat) == 4
    assert from_wat == [row for row in from_warc if row[3] in pages]
    assert dropped == Counter()


def test_wat_files_with_wrong_record_lengths_are_survived(shared_data):
    seen = Counter()
    with tarfile.open(shared_data / "web" / "wat_damaged_headers.tar.gz") as archive:
        names = [name for name in archive.getnames() if name.endswith(".wat.gz")]
        for name in names:
            rows, dropped = rows_of(read_wat(archive.extractfile(name), PairsConfig()))
            assert rows == []
            seen += dropped
    # Two of the four lengths are right (27 images each, none with a text), two are too short.
    assert len(names) == 4
    assert seen == Counter({Reason.NO_CAPTION: 54, Reason.DAMAGED_RECORD: 2})


def test_a_real_wat_without_images(shared_data):
    with (shared_data / "web" / "whirlwind.warc.wat.gz").open("rb") as stream:
        assert rows_of(read_wat(stream, PairsConfig())) == ([], Counter())


def test_a_wat_that_breaks_off():
    raw = gzip.compress(wat([image_link("a.jpg", alt="x")])) * 2
    rows, dropped = rows_of(read_wat(io.BytesIO(raw[:-50]), PairsConfig()))
    assert (len(rows), dropped) == (1, Counter({Reason.DAMAGED_FILE: 1}))


def origins_of(batches: Any) -> list[tuple[Any, Any]]:
    rows = [row for batch in batches for row in batch.candidates.to_pylist()]
    return [(row["captured_at"], row["source_offset"]) for row in rows]


def test_rows_say_when_their_page_was_crawled_and_where_their_record_is(shared_data):
    with tarfile.open(shared_data / "web" / "cc_main_2014_35_warc_wat_wet.tar.gz") as archive:
        names = {name.split(".")[-1]: name for name in archive.getnames()}
        wat_file, warc_file = (archive.extractfile(names[kind]).read() for kind in ("wat", "warc"))
    from_wat = origins_of(read_wat(io.BytesIO(wat_file), PairsConfig()))
    from_warc = origins_of(read_warc(io.BytesIO(warc_file), PairsConfig()))
    assert {at for at, _ in from_wat} <= {at for at, _ in from_warc}
    assert {at.year for at, _ in from_wat} == {2014}
    for content, found in ((wat_file, from_wat), (warc_file, from_warc)):
        for at, offset in found:
            record = next(warc_records.read_records(io.BytesIO(content[offset:]), offset))
            assert f"WARC-Date{':' if content is warc_file else chr(34)}" in str(record.header + record.block)
            assert at.strftime("%Y-%m-%dT%H:%M:%SZ").encode() in record.header + record.block


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_the_date_is_read_from_any_spelling_of_the_json(separators: tuple[str, str]) -> None:
    body = json.loads(wat([image_link("a.jpg", alt="x")]).split(b"\r\n\r\n")[1])
    body["Envelope"]["WARC-Header-Metadata"] = {"WARC-Type": "response", "WARC-Date": "2024-05-06T07:08:09Z"}
    raw = record("metadata", json.dumps(body, separators=separators).encode())
    ((at, _),) = origins_of(read_wat(io.BytesIO(raw), PairsConfig()))
    assert at == datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.mark.parametrize("uri", ["", "http://", "mailto:a@b.example"])
def test_a_page_names_no_image_by_its_content(uri: str) -> None:
    """Such a name is that of an image in the tars of a source, which a page could otherwise give captions to."""
    name = f"ni:///sha-256;{'A' * 43}"
    assert read(wat([image_link(name, alt="x")], uri)) == ([], Counter({Reason.BAD_URL: 1}))


@pytest.mark.parametrize("date", ["", "2014", "yesterday", "9999-99-99T00:00:00Z"])
def test_a_date_that_is_none_is_unknown(date: str) -> None:
    response = record("response", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<img src=/a.jpg alt=x>")
    raw = gzipped([response.replace(b"WARC-Type: ", f"WARC-Date: {date}\r\nWARC-Type: ".encode())])
    (found,) = origins_of(read_warc(io.BytesIO(raw), PairsConfig()))
    assert found[1] == 0
    assert found[0] is None or date == "2014"


def test_a_word_of_refusal_in_a_link_refuses_nothing_and_one_beside_the_links_does() -> None:
    links = [other_link(text="noai"), image_link("/noai.jpg", alt="noimageai"), other_link(text="noml")]
    assert len(read(wat(links))[0]) == 1
    assert len(read(wat(links, metas=[{"name": "robots", "content": "noai"}]))[0]) == 0
    assert len(read(wat(links, headers={"X-Robots-Tag": "noai"}))[0]) == 0


NAMES = st.sampled_from(
    [
        "robots",
        "GPTBot",
        "\n GPTBot\u00a0",
        "Metas",
        "gpt-bot",
        "Kangaroo Bot",
        "wit-pipeline",
        "TDM-Reservation",
        "author",
    ]
)
STATED = st.sampled_from(
    ["Metas", "noai", "no-ai", "NOINDEX", "none", "nofollow", "1", "0", '}],"x', "noml", "max-snippet:1", "x"]
)
METAS = st.lists(
    st.builds(
        lambda key, name, said: {key: name, "content": said}, st.sampled_from(["name", "property"]), NAMES, STATED
    ),
    max_size=3,
)
HEADERS = st.dictionaries(
    st.sampled_from(["X-Robots-Tag", "x-robots-tag", "TDM-Reservation", "Content-Usage", "Content-Signal", "Link"]),
    st.one_of(STATED, st.sampled_from(["train-ai=n", "ai-train=no", "gptbot: noai"])),
    max_size=2,
)
ARRAYS = st.lists(st.fixed_dictionaries({"path": st.just("LINK@/href"), "url": WORDS | STATED | NAMES}), max_size=2)


@settings(max_examples=300)
@given(METAS, HEADERS, ARRAYS, ARRAYS, st.permutations(["Metas", "Link", "Scripts"]), st.booleans(), st.booleans())
def test_the_quick_way_misses_no_refusal(metas, headers, link, scripts, order, is_head_first, are_headers_first):
    head = {key: {"Metas": metas, "Link": link, "Scripts": scripts}[key] for key in order}
    links = [other_link(text="Headlines noai"), image_link("a.jpg", alt="x"), other_link(text="robots: none")]
    parts = [("Head", head), ("Links", links)]
    inner = ("HTML-Metadata", dict(parts if is_head_first else parts[::-1]))
    response = dict([("Headers", headers), inner] if are_headers_first else [inner, ("Headers", headers)])
    body = {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": response}}}
    raw = record("metadata", json.dumps(body, separators=(",", ":")).encode())
    quick = read(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wat_module, "_cut_out", lambda block, first, policy: None)
        assert read(raw) == quick
    assert len(quick[0]) + quick[1][Reason.OPTED_OUT] == 1
