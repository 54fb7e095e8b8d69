import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.wiki_files import HEADER, dump_xml, multistream, page

from queries.errors import InputError
from queries.wikipedia import dump
from queries.wikipedia.dump import DumpPart, Page, read_pages, read_site, split_dump

PAGES = [
    page("Dog", "A '''dog''' & a [[cat]] <ref>x</ref>"),
    page("Doggo", "#REDIRECT [[Dog]]", redirect=True),
    page("Category:Dogs", "", namespace=14),
    page("Style.css", "a {}", model="css"),
    *[page(f"Page {n}", f"words ž of {n} " * n) for n in range(20)],
]
READ = [
    Page("Dog", 0, False, "A '''dog''' & a [[cat]] <ref>x</ref>"),
    Page("Doggo", 0, True, "#REDIRECT [[Dog]]"),
    Page("Category:Dogs", 14, False, ""),
    *[Page(f"Page {n}", 0, False, f"words ž of {n} " * n) for n in range(20)],
]


def blocks(content: bytes) -> bytes:
    """Compress as parallel bzip2 does: streams that are cut anywhere."""
    return b"".join(bz2.compress(content[i : i + 700]) for i in range(0, len(content), 700))


def all_pages(path: Path) -> list[Page]:
    return [page for part in split_dump(str(path), 300) for page in read_pages(part)]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("dump.xml", lambda: dump_xml(PAGES)),
        ("dump.xml.gz", lambda: gzip.compress(dump_xml(PAGES))),
        ("dump.xml.bz2", lambda: bz2.compress(dump_xml(PAGES))),
        ("dump.xml-p1p41242.bz2", lambda: blocks(dump_xml(PAGES))),
        ("dump-multistream.xml.bz2", lambda: multistream(PAGES)),
    ],
)
def test_every_form_of_dump_has_the_same_pages(tmp_path: Path, name: str, write: Callable[[], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(write())
    parts = split_dump(str(path), 300)
    assert (len(parts) > 1) == ("multistream" in name)
    assert all_pages(path) == READ
    site = read_site(str(path))
    assert (site.name, site.project) == ("xxwiki", "xx.wikipedia")
    assert {"dosiero", "special", "category", "file"} <= site.namespaces
    assert "" not in site.namespaces


@given(st.integers(60, 5_000), st.integers(1, 9), st.integers(11, 2_000))
def test_parts_of_any_size_share_out_the_pages(part_bytes: int, per_stream: int, read_bytes: int) -> None:
    content = multistream(PAGES, per_stream)
    fsspec.filesystem("memory").pipe_file("/dump.xml.bz2", content)
    starts = range(0, len(content), part_bytes)
    parts = [DumpPart("memory://dump.xml.bz2", start, min(start + part_bytes, len(content))) for start in starts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dump, "_READ_BYTES", read_bytes)
        assert [p for part in parts for p in read_pages(part)] == READ


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.xml.bz2", None, "no such file"),
        (
            "page.xml",
            b"<!DOCTYPE html><html><title>Index of /enwiki",
            "not a MediaWiki XML dump; it begins with b'<!DOC",
        ),
        ("page.xml.gz", b"<html>", "cannot be read"),
        ("a.xml", b"", "not a MediaWiki XML dump"),
        ("a.xml", b"<mediawiki>", "does not begin with a <siteinfo>"),
        ("a.xml", b"<mediawiki><siteinfo></mediawiki>", "does not begin with a <siteinfo>"),
        ("a.xml.bz2", bz2.compress(dump_xml(PAGES))[:20], "truncated"),
        ("a.xml", b'<?xml version="1.0" encoding="foo"?>' + dump_xml(PAGES), "unsupported XML encoding"),
        ("a.xml", b'<?xml version="1.0" encoding="gbk"?>' + dump_xml(PAGES), "unsupported XML encoding"),
        ("a.xml", dump_xml(PAGES).replace(b"https://", b"http://["), "its <base>, .* is not a URL"),
    ],
)
def test_a_file_that_is_not_a_dump_is_refused_before_any_work(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_site(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.xml", dump_xml(PAGES)[:-200]),
        ("cut.xml.gz", gzip.compress(dump_xml(PAGES), mtime=0)[:-20]),
        ("cut.xml.bz2", bz2.compress(dump_xml(PAGES))[:-20]),
        ("cut-multistream.xml.bz2", multistream(PAGES)[:-70]),
        ("cut-at-a-stream.xml.bz2", multistream(PAGES)[: -len(bz2.compress(b"</mediawiki>\n"))]),
        ("cut-in-the-first.xml.bz2", multistream(PAGES)[: len(bz2.compress(HEADER.encode())) + 30]),
    ],
)
def test_a_truncated_dump_is_one_clear_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match="truncated") as caught:
        all_pages(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<!-- <mediawiki --><x><page></page></x>", b"", b"<page></page>"])
def test_pages_of_another_root_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.xml: (not a MediaWiki dump|the XML is damaged)"):
        list(read_pages(DumpPart(str(tmp_path / "a.xml"))))


def test_a_damaged_dump_is_one_clear_line(tmp_path: Path) -> None:
    content = bytearray(multistream(PAGES))
    content[len(content) // 2] ^= 0xFF
    path = tmp_path / "bad-multistream.xml.bz2"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read|damaged|truncated"):
        all_pages(path)


@pytest.mark.parametrize("write", [dump_xml, multistream])
@pytest.mark.parametrize("namespace", ["abc", "1" * 5_000])
def test_a_namespace_that_is_not_a_number_names_the_file_and_the_page(
    tmp_path: Path, write: Callable[[list[str]], bytes], namespace: str
) -> None:
    path = tmp_path / ("dump.xml" if write is dump_xml else "dump.xml.bz2")
    path.write_bytes(write([*PAGES, page("Odd").replace("<ns>0", f"<ns>{namespace}")]))
    with pytest.raises(InputError, match=f"{path}: the namespace of page 'Odd' is '{namespace[:3]}"):
        all_pages(path)


@pytest.mark.parametrize("read_bytes", [20, 1 << 20])
@pytest.mark.parametrize(
    ("last", "after"), [("</mediawiki>\n\n", b""), ("</mediawiki>", bytes(1_000)), (" </mediawiki>\r\n", bytes(9))]
)
def test_what_follows_the_end_of_a_multistream_dump_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, after: bytes, read_bytes: int
) -> None:
    whole = multistream(PAGES)
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(whole.removesuffix(bz2.compress(b"</mediawiki>\n")) + bz2.compress(last.encode()) + after)
    parts = split_dump(str(path), 300)
    monkeypatch.setattr(dump, "_READ_BYTES", read_bytes)
    assert [p for part in parts for p in read_pages(part)] == READ


def test_what_is_no_stream_at_the_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(multistream(PAGES) + b"\0\0hello")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_pages(DumpPart(str(path), 0, path.stat().st_size)))


@pytest.mark.parametrize("name", ["dump.xml.bz2", "dump.xml.gz", "multistream.xml.bz2"])
@pytest.mark.parametrize("filler", ["x", " ", "<a/>", "<a>"])
def test_a_page_that_unpacks_for_ever_is_refused(
    name: str, filler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump, "_MAX_PAGE_BYTES", 1 << 20)
    monkeypatch.setattr(dump, "_MAX_STREAM_BYTES", 1 << 20)
    monkeypatch.setattr(dump, "_MAX_ELEMENTS", 10_000)
    endless = f"<page><title>Dog</title><revision><text>{filler * 2_000_000}".encode()
    good = page("Cat", "text")
    if name.startswith("multistream"):
        content = b"".join(map(bz2.compress, (HEADER.encode(), good.encode(), endless)))
    else:
        pack = gzip.compress if name.endswith(".gz") else bz2.compress
        content = pack(HEADER.encode() + good.encode() + endless)
    (tmp_path / name).write_bytes(content)
    (part,) = split_dump(str(tmp_path / name), 1 << 30)
    pages = read_pages(part)
    assert next(pages).title == "Cat"
    with pytest.raises(InputError, match=rf"{name}: a (page|stream).* of over [\d,]+ (bytes|elements)"):
        next(pages)
