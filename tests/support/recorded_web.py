"""A small web recorded in a WARC file, and a project that builds a set from it: no network, the same bytes again."""

import gzip
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image
from support.image_server import ImageServer

WORDS = ["dog", "cat", "red house", "tree", "river", "mountain", "猫", "straße", "unseen", "blue boat"]


def picture(seed: int, size: tuple[int, int] = (96, 80), quality: int = 90) -> bytes:
    """Return a JPEG that looks like no other: a coarse random pattern, smoothly enlarged."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
    out = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=quality)
    return out.getvalue()


def record(url: str, content_type: str, body: bytes, status: str = "200 OK") -> bytes:
    """Return one WARC response record, in a gzip member of its own, with a fixed date."""
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    fields = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{hashlib.md5(url.encode()).hexdigest()}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return gzip.compress(fields.encode() + http + b"\r\n\r\n", mtime=0)


def image_url(i: int) -> str:
    return f"http://host{i % 5}.example/pictures/{i}.jpg"


def caption(i: int) -> str:
    return f"Picture {i} of a {WORDS[i * 7 % (len(WORDS) - 2)]} and a {WORDS[i % 3]}"


def make_images(count: int) -> dict[str, bytes]:
    """Return URL -> bytes: pictures, some of them exact or near copies of an earlier one, broken, or missing."""
    images = {}
    for i in range(count):
        original = i - 3 if i % 11 == 3 else i
        body = picture(original, quality=60 if i % 22 == 3 else 90)
        if i % 17 == 5:
            body = body[: len(body) // 2]
        if i % 13 != 7:  # the rest is linked, but nowhere to be had
            images[image_url(i)] = body
    return images


def make_pages(count: int, images_per_page: int = 10) -> dict[str, bytes]:
    """Return URL -> HTML: every image with a caption, some with a second text, some twice."""
    pages = {}
    for page, first in enumerate(range(0, count, images_per_page)):
        tags = []
        for i in range(first, min(first + images_per_page, count)):
            title = f' title="A second text: {WORDS[i % 4]}"' if i % 6 == 0 else ""
            tags.append(f'<img src="{image_url(i)}" alt="{caption(i)}"{title}>')
            if i % 9 == 0:
                tags.append(f'<img src="{image_url(i)}" alt="{caption(i)}">')
        html = f"<html><head><meta charset=utf-8></head><body>{''.join(tags)}</body></html>"
        pages[f"http://pages.example/{page}.html"] = html.encode()
    return pages


def make_project(
    folder: Path, count: int = 120, *, parts: int | None = 6, files: int = 3, control: int = 10, **fetch: object
) -> Path:
    """Write WARC files, an evaluation set, an allowlist and a config into `folder`; return the config's path.

    `control` images are rendered as the negative control: few, because that takes a second for each hundred.

    `fetch` overrides keys of `[fetch]`, None leaves one out; without any, images come from the archives and nothing
    leaves the machine.
    """
    from queries.allowlist import import_allowlist

    folder.mkdir(parents=True, exist_ok=True)
    records = [record(url, "text/html", body) for url, body in make_pages(count).items()]
    if fetch.get("archives", True):
        records += [record(url, "image/jpeg", body) for url, body in make_images(count).items()]
    for i in range(files):
        (folder / f"web-{i}.warc.gz").write_bytes(b"".join(records[i::files]))
    for i in (0, 1, 2, 500, 501):
        target = folder / "evals" / f"class{i % 2}" / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(picture(i))).resize((64, 64)).save(target)
    (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    import_allowlist(str(folder / "words.txt"), str(folder / "queries.parquet"))
    settings = {"parts": parts, "network": False, "archives": ["web-*.warc.gz"], "image_size": 64} | fetch
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\nseed = 3\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "warc"\npaths = ["web-*.warc.gz"]\n'
        "[balance]\ncap = 15\nslack = 1.5\n[fetch]\n"
        + "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items() if value is not None)
        + f"[dedup]\ncontrol = {control}\n"
        + '[[evals]]\nname = "shapes"\nkind = "folder"\npath = "evals"\n'
    )
    return config


def make_web_project(folder: Path, count: int, web: ImageServer, **fetch: object) -> Path:
    """Do the same, but the images are requested from `web`."""
    live = {
        "archives": [],
        "network": True,
        "gateway": web.gateway,
        "contact": "mailto:test@example.org",
        "host_interval_s": 0.0,
    }
    return make_project(folder, count, **live | fetch)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | list) else f'"{value}"'


def tree(root: Path, *folders: str) -> dict[str, str]:
    """Return name -> SHA-256 of every file below `root`, or below some of its folders.

    Without consent/: it says when things were asked for, which no two builds do at the same time.
    """
    starts = [root / folder for folder in folders] or [root]
    files = sorted(p for start in starts for p in start.rglob("*") if p.is_file())
    records = (root / "consent", root / ".wit/consent", root / ".wit/run")
    files = [p for p in files if not any(p.is_relative_to(folder) for folder in records)]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
