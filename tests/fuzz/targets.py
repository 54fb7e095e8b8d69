"""Every reader of bytes that somebody else wrote: its seeds, and what holds for any input.

A check returns where the reader gave an answer or refused with an error it promises; anything else is a finding.
"""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz import grammars
from hypothesis.strategies import SearchStrategy
from PIL import Image
from support.recorded_web import make_images, make_pages, picture, record
from support.shared_data import SHARED
from support.warc_files import image_link, wat
from support.wiki_files import dump_xml, page

from dedup.decode import ImageDecodeError, decode_rgb
from dedup.eval_sets.index import index_eval_set
from pipeline.config import PairsConfig
from pipeline.config.fetch import FetchConfig
from pipeline.config.sources import SourceConfig
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.consent.rsl import read_rsl, rsl_statement
from pipeline.engine.units import read_marker
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.images import store_image
from pipeline.fetching.journal import Journal
from pipeline.fetching.outcome import FetchFailure, Outcome
from pipeline.fetching.robots import parse_robots
from pipeline.sources import read_source
from pipeline.sources.charset import decode_page
from pipeline.sources.html import extract_images
from pipeline.web.http_payload import decode_body, parse_response
from queries.errors import InputError
from queries.list_files import read_list
from queries.wikipedia.dump import read_pages, split_dump
from trainer import checkpoint
from trainer.errors import TrainerError
from trainer.tar_index import index_tar

_FETCH = FetchConfig(contact="mailto:fuzz@example.org", min_image_size=1, max_aspect_ratio=1e9)
_LIMITS = PairsConfig()
_MAX_SEED_BYTES = 200_000


@dataclass(frozen=True)
class Target:
    """A reader, files it can read, and the words of their format."""

    name: str
    seeds: Sequence[bytes]
    check: Callable[[bytes], object]
    tokens: Sequence[bytes] = ()
    grammar: SearchStrategy[bytes] | None = None


def load_targets() -> dict[str, Target]:
    """Return all targets by name."""
    images = [*_images(), *_shared("web/pillow_decoder_images_small.tar.gz")]
    warcs, wats = _warcs(), _wats()
    pages = [html for html in make_pages(20).values()] + _shared("web/html_readability_130.tar.gz", 40)
    robots = [b"User-agent: *\nDisallow: /a\nAllow: /a/b$\nCrawl-delay: 3\n", *_shared("web/robots_txt_529.tar.gz", 60)]
    tables = [b"url,caption\nhttp://a.example/1.jpg,a dog\n", b'url,caption\n"http://a.example/2.jpg","a ""cat"""\n']
    lines = [b'{"url": "http://a.example/1.jpg", "caption": "a dog"}\n{"url": null}\n']
    parquets = [_parquet({"url": ["http://a.example/1.jpg"] * 50, "caption": ["a dog", None] * 25})]
    metadata = [*images[:20], *(_with_xmp(image) for image in images[:20])]
    evals = [_tar({f"{i}.png": picture(i), f"{i}.cls": b"1"}) for i in range(3)]
    eval_parquets = [_parquet({"image": [picture(i) for i in range(5)], "label": list(range(5))})]
    list_parquets = [_parquet({"query": ["dog", "cat"], "origins": [["a"], ["b", "c"]], "score": [[1.0], [2.0, None]]})]
    shards = [_tar({f"{i:03}.jpg": picture(i), f"{i:03}.txt": b"a dog", f"{i:03}.json": b"{}"}) for i in range(3)]
    angle, quote = (b"<img alt='", b"srcset=", b"<noscript>", b"<!--", b"</", b"&#x"), (b'"', b",", b"\r", b"\0")
    words = (b"User-agent: ", b"Disallow: ", b"*", b"$", b"%", b"\r")
    boxes = (b"\xff\xda", b"\xff\xd9", b"IDAT", b"ftypavif", b"VP8X", b"Exif\0\0")
    responses, packed = [_http(body) for body in pages[:20]], [gzip.compress(table, mtime=0) for table in tables]
    heads = (b"WARC/1.0\r\n", b"Content-Length: ", b"HTTP/1.1 200", b"chunked", b"gzip")
    wiki = (b"<page>", b"{{", b"[[", b"<text", b"&lt;", b"{|", b"<ref>")
    targets = [
        Target("images", images, _check_image, boxes),
        Target("trainimages", images, _check_training_image, boxes),
        Target("warc", warcs, _source("warc", ".warc.gz"), heads),
        Target("wat", wats, _source("wat", ".wat.gz"), (*heads, b'"Links":[', b'{"path":"IMG@/src"')),
        Target("html", pages, _check_page, angle, grammars.HTML),
        Target("http", responses, _check_response, heads, grammars.HTTP),
        Target("robots", robots, _check_robots, words, grammars.ROBOTS),
        Target("csv", tables, _source("url-table", ".csv"), quote, grammars.CSV),
        Target("csvgz", packed, _source("url-table", ".csv.gz")),
        Target("jsonl", lines, _source("url-table", ".jsonl"), (b"{", b"[", b'"', b"\\ud800"), grammars.JSONL),
        Target("parquet", parquets, _source("url-table", ".parquet"), (b"PAR1",)),
        Target("evaltar", evals, _evaluation("webdataset", ".tar"), (b"ustar", b"GNU.sparse")),
        Target("evalparquet", eval_parquets, _evaluation("parquet", ".parquet"), (b"PAR1",)),
        Target("list", [b'["dog", "cat"]', b'{"dog": 3, "cat": 1e3}'], _list(".json"), (b"[", b"{", b"NaN")),
        Target("listparquet", list_parquets, _list(".parquet"), (b"PAR1",)),
        Target("listcsv", [b"query,score\ndog,1\ncat,2\n"], _list(".csv"), quote),
        Target("dump", _dumps(), _check_dump, wiki),
        Target("marker", _markers(), _check_marker, (b"../", b'"outputs":', b"null", b"["), grammars.MARKER),
        Target("metadata", metadata, read_image_metadata, (b"<x:xmpmeta", b"plus:DataMining", b"8BIM", b"c2pa")),
        Target("licence", [_RSL], _check_licence, (b"<prohibits", b"<payment", b"<!DOCTYPE", b"&x;")),
        Target("journal", _journals(), _check_journal),
        Target("shardtar", shards, _check_shard, (b"ustar",)),
        Target("checkpoint", _checkpoints(), _check_checkpoint, (b"PK\x03\x04", b"data.pkl")),
    ]
    return {target.name: target for target in targets}


def _check_image(data: bytes) -> None:
    with suppress(FetchFailure):
        stored = store_image(data, _FETCH)
        with Image.open(io.BytesIO(stored.file)) as image:
            image.load()


def _check_training_image(data: bytes) -> None:
    with suppress(ImageDecodeError):
        decode_rgb(data, min_side=64)


def _source(kind: str, suffix: str) -> Callable[[bytes], None]:
    """Return a check: rows come, or one line says why they do not."""

    def check(data: bytes) -> None:
        with TemporaryDirectory(prefix="wit-fuzz-") as folder:
            path = Path(folder, f"file{suffix}")
            path.write_bytes(data)
            source = SourceConfig.model_validate({"kind": kind, "paths": [str(path)]})
            with suppress(UserError):
                for batch in read_source(source, str(path), _LIMITS):
                    batch.candidates.validate(full=True)

    return check


def _check_page(data: bytes) -> None:
    decoded = decode_page(data, None)
    if decoded is not None:
        extract_images(decoded.text)


def _http(body: bytes) -> bytes:
    packed = gzip.compress(body, mtime=0)
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + packed


def _check_response(data: bytes) -> None:
    with suppress(OSError):
        decode_body(parse_response(data), 1 << 20)


def _check_robots(data: bytes) -> None:
    rules = parse_robots(data, "wit-pipeline")
    for path in ("/", "/a/b", "/" + "a/" * 200, "/%7Euser?x=*$"):
        rules.allows(f"http://a.example{path}")


def _evaluation(kind: str, suffix: str) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        with TemporaryDirectory(prefix="wit-fuzz-") as folder:
            path = Path(folder, f"set{suffix}")
            path.write_bytes(data)
            with suppress(OSError, ValueError):
                summary = index_eval_set("set", kind, path, Path(folder, "out"))
                assert summary.examples == summary.indexed + sum(summary.failures.values())

    return check


def _list(suffix: str) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        with TemporaryDirectory(prefix="wit-fuzz-") as folder:
            path = Path(folder, f"list{suffix}")
            path.write_bytes(data)
            with suppress(InputError):
                read_list(str(path)).validate(full=True)

    return check


def _check_dump(data: bytes) -> None:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        path = Path(folder, "dump.xml")
        path.write_bytes(data)
        with suppress(InputError):
            for part in split_dump(str(path), 1 << 20):
                for _ in read_pages(part):
                    pass


def _check_marker(data: bytes) -> None:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        place = Path(folder, ".wit", "step")
        place.mkdir(parents=True)
        (place / "unit.json").write_bytes(data)
        with suppress(UserError):
            marker = read_marker(Workspace(folder), "step", "unit")
            if marker is not None:
                assert not any(name.startswith("/") or ".." in name.split("/") for name in marker.outputs)


def _check_shard(data: bytes) -> None:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        path = Path(folder, "00000.tar")
        path.write_bytes(data)
        with suppress(TrainerError), path.open("rb") as file:
            places = index_tar(file, path.name)
            assert (places[..., 0] + places[..., 1] <= len(data)).all()


def _check_checkpoint(data: bytes) -> None:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        path = checkpoint.checkpoint_path(Path(folder), 1)
        path.write_bytes(data)
        with suppress(TrainerError):
            checkpoint.load(path)


def _check_licence(data: bytes) -> None:
    rsl_statement(
        read_rsl(data, "http://a.example/licence.xml"), "http://a.example/licence.xml", "http://a.example/1.jpg"
    )


def _check_journal(data: bytes) -> None:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        path = Path(folder, "part.journal")
        path.write_bytes(data)
        journal = Journal.open(path, "key", Path(folder))
        images = [outcome.image for outcome in journal.outcomes.values() if outcome.image is not None]
        assert all(len(journal.read(span)) == span[1] for span in images)
        journal.close()


def _journals() -> list[bytes]:
    with TemporaryDirectory(prefix="wit-fuzz-") as folder:
        path = Path(folder, "part.journal")
        journal = Journal.open(path, "key", Path(folder))
        for number in range(5):
            journal.add_decoding(f"http://a.example/{number}.jpg")
            journal.add_outcome(f"http://a.example/{number}.jpg", Outcome(http_status=200), picture(number))
        journal.close()
        return [path.read_bytes()]


_RSL = b"""<rsl xmlns="https://rslstandard.org/rsl"><content url="/*.jpg$"><license><prohibits type="usage">train-ai
</prohibits><payment type="crawl"><amount currency="USD">5</amount></payment></license></content></rsl>"""
_XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/" plus:DataMining="DMI-PROHIBITED"/></rdf:RDF>
</x:xmpmeta>"""


def _with_xmp(image: bytes) -> bytes:
    """Return a file with an XMP packet: in the second segment of a JPEG, at the end of any other."""
    packet = b"http://ns.adobe.com/xap/1.0/\0" + _XMP
    segment = b"\xff\xe1" + (len(packet) + 2).to_bytes(2, "big") + packet
    return image[:2] + segment + image[2:] if image.startswith(b"\xff\xd8") else image + packet


def _images() -> list[bytes]:
    seeds = [picture(1), picture(2, (40, 56), 60)]
    image = Image.open(io.BytesIO(picture(3, (48, 40))))
    for form, options in (
        ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}), ("AVIF", {}), ("PPM", {}),
    ):  # fmt: skip
        for mode in ("RGB", "L", "P", "LA", "RGBA", "CMYK", "I;16"):
            out = io.BytesIO()
            with suppress(OSError, KeyError, ValueError):
                turned = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
                turned.save(out, form, **options)
                seeds.append(out.getvalue())
    return seeds


def _warcs() -> list[bytes]:
    pages = [record(url, "text/html", body) for url, body in make_pages(20).items()]
    images = [record(url, "image/jpeg", body) for url, body in list(make_images(6).items())]
    seeds = [b"".join(pages[:3]), b"".join([*pages[:2], *images]), gzip.decompress(b"".join(pages[:2]))]
    return seeds + [p.read_bytes() for p in sorted(SHARED.glob("web/whirlwind.warc.gz"))]


def _wats() -> list[bytes]:
    links = [image_link(f"/{i}.jpg", alt=f"a dog {i}", title="é") for i in range(5)] + [{"path": "A@/href", "url": "x"}]
    plain = wat(links) + wat(links, base="http://b.example/")
    return [plain, gzip.compress(plain, mtime=0)]


def _dumps() -> list[bytes]:
    markup = "A '''dog''' is [[animal|an animal]]. {{Infobox|x=1}} <ref>no</ref> {| class=a\n| b\n|}\n== See ==\n* cat"
    return [dump_xml([page(f"Title {i}", markup) for i in range(3)])]


def _markers() -> list[bytes]:
    outputs = {"out/1.parquet": {"bytes": 3, "sha256": "0" * 64}}
    return [json.dumps({"digest": "d", "outputs": outputs, "counts": {"inputs": 3, "kept": 3}}).encode()]


def _checkpoints() -> list[bytes]:
    import torch

    content = {
        "format": checkpoint.FORMAT, "identity": {"train.architecture": "x", "train.objective": "clip"},
        "model": {"w": torch.zeros(3)}, "optimizer": {"state": {}}, "scaler": {}, "broken": {}, "step": 1,
    }  # fmt: skip
    out = io.BytesIO()
    torch.save(content, out)
    return [out.getvalue()]


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _parquet(columns: dict[str, list[object]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _shared(name: str, most: int = 200) -> list[bytes]:
    """Return files of a tar of real data; none where that is not there."""
    if not (SHARED / name).exists():
        return []
    with tarfile.open(SHARED / name) as tar:
        members = sorted((m for m in tar if m.isfile() and m.size <= _MAX_SEED_BYTES), key=lambda m: m.name)
        picked = [members[i] for i in np.linspace(0, len(members) - 1, min(most, len(members))).astype(int)]
        return [tar.extractfile(member).read() for member in picked]  # type: ignore[union-attr]
