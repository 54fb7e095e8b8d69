"""What the filters on hosts, frequent captions, families of captions and images drop of real data, with examples.

    python -m benchmarks.filter_examples [--examples 20] [--images FOLDER]

Pairs: Conceptual Captions (validation), COCO (2017 validation), 1,000 rows of LAION-400M, and the images and texts of
real pages. Images: those recorded with the pages, a shard of CC12M, and photos of COCO and Caltech 101; what is dropped
is written to FOLDER, to be looked at. Needs the folder of real data (WIT_SHARED_DATA).
"""

import argparse
import os
import random
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dedup.decode import ImageDecodeError, decode_rgb
from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.filters.families import band_rows, firsts_of_bands, word_set_keys
from pipeline.filters.frequency import CAPTION_USES, frequent_captions
from pipeline.filters.hosts import HostRules, host_of, host_reasons
from pipeline.filters.images import is_single_colour
from pipeline.sources import read_source
from pipeline.stages.plan_candidates import url_hashes
from pipeline.web.http_payload import decode_body, parse_response
from pipeline.web.warc_records import WarcRecord, read_records

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
SOURCES: list[tuple[str, dict[str, Any]]] = [
    ("text/cc3m_validation.tsv.gz", {"kind": "url-table", "header": False, "url": "2", "caption": "1"}),
    ("text/laion400m_1000.parquet", {"kind": "url-table", "url": "URL", "caption": "TEXT"}),
    ("text/coco_val2017_captions.json.gz", {"kind": "url-table", "preset": "coco"}),
    ("web/*.warc.gz", {"kind": "warc"}),
]
BLOCKED = ("*.blogspot.com", "*.alamy.com", "shutterstock.com", "*.dailymail.co.uk", "ebayimg.com", "*.wordpress.com")
MAX_IMAGES, MAX_PAIRS, SIMILARITY = 10, 3, 0.7
_MOST_BYTES = 32 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--images", type=Path)
    args = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.filter_examples: needs the folder of real data: set WIT_SHARED_DATA")
    pairs = real_pairs()
    print(f"{pairs.num_rows:,} pairs")
    show_hosts(pairs, args.examples)
    show_frequent(pairs, args.examples)
    show_families(pairs, args.examples)
    show_images(args.examples, args.images)


def real_pairs() -> pa.Table:
    batches = []
    for pattern, keys in SOURCES:
        for path in sorted(SHARED.glob(pattern)):
            source = SourceConfig.model_validate(keys | {"paths": [str(path)]})
            batches += [batch.candidates for batch in read_source(source, str(path), PairsConfig())]
    return pa.Table.from_batches(batches).select(["url", "caption", "page_url"]).combine_chunks()


def sample(rows: Sequence[Any], count: int) -> list[Any]:
    return random.Random(0).sample(list(rows), min(count, len(rows)))


def show_hosts(pairs: pa.Table, examples: int) -> None:
    rules = HostRules.parse(BLOCKED)
    urls, pages = (pairs[name].combine_chunks() for name in ("url", "page_url"))
    _, blocked = host_reasons(urls, pages, HostRules.parse(()), rules)
    dropped = np.flatnonzero(blocked)
    print(f"\nblock_hosts = {list(BLOCKED)}: {len(dropped):,} dropped")
    for row in sample(dropped.tolist(), examples):
        print(f"    {host_of(urls[row].as_py())}  (page {host_of(pages[row].as_py()) or '-'})")
    names = [rule.lstrip("*.") for rule in BLOCKED]
    near = {host_of(url) for url in urls.filter(pa.array(~blocked)).to_pylist()}
    print(f"    kept, with such a name inside: {sorted(h for h in near if any(n in h for n in names))[:examples]}")


def show_frequent(pairs: pa.Table, examples: int) -> None:
    captions, urls = (url_hashes(pairs[name].to_pylist(), 0) for name in ("caption", "url"))
    uses = pa.table([captions, urls, np.zeros(len(urls), np.int32)], CAPTION_USES)
    found = frequent_captions(uses, MAX_IMAGES)["caption_hash"].to_numpy()
    images = defaultdict(set)
    for text, url, is_found in zip(
        *(pairs[n].to_pylist() for n in ("caption", "url")), np.isin(captions, found), strict=True
    ):
        if is_found:
            images[text].add(url)
    print(f"\nmax_images_per_caption = {MAX_IMAGES}: {np.isin(captions, found).sum():,} rows of {len(images):,}")
    for text in sample(sorted(images), examples):
        print(f"    {len(images[text]):6,} images  {text[:100]!r}")


def show_families(pairs: pa.Table, examples: int) -> None:
    captions = pairs["caption"].combine_chunks()
    keys = word_set_keys(captions)
    firsts = firsts_of_bands(band_rows(captions, keys, SIMILARITY), SIMILARITY)
    first = dict(sorted(zip(firsts["key"].to_pylist(), firsts["first"].to_pylist(), strict=True), reverse=True))
    texts = captions.to_pylist()
    members: dict[int, list[int]] = defaultdict(list)
    for row, key in enumerate(keys.tolist()):
        if key:
            members[first.get(key, key)].append(row)
    hashes = url_hashes([f"{url} {text}" for url, text in zip(pairs["url"].to_pylist(), texts, strict=True)], 0)
    ordered = {key: sorted(rows, key=hashes.__getitem__) for key, rows in members.items()}
    dropped = [(key, row) for key, rows in sorted(ordered.items()) for row in rows[MAX_PAIRS:]]
    print(f"\nmax_pairs_per_family = {MAX_PAIRS}: {len(dropped):,} dropped")
    for key, row in sample(dropped, examples):
        print(f"    {texts[row][:110]!r}\n        stays: {texts[ordered[key][0]][:110]!r}")
    for rows in sorted(ordered.values(), key=len, reverse=True)[:5]:
        print(f"    family of {len(rows):,}: {sorted({texts[row][:70] for row in rows})[:4]}")


def real_images() -> Iterator[tuple[str, bytes]]:
    """Yield (URL or name, file): images that were recorded with pages, and those of a shard."""
    for path in sorted((SHARED / "web").glob("*.warc.gz")):
        with path.open("rb") as stream:
            for record in read_records(stream):
                if isinstance(record, WarcRecord) and record.field("WARC-Type") == "response":
                    yield from _image_of(record)
    for name in ("shards/cc12m_32.tar", "photos/coco_159.tar", "photos/caltech101_20_per_class.tar"):
        with tarfile.open(SHARED / name) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    yield f"{name}: {member.name}", tar.extractfile(member).read()  # type: ignore[union-attr]


def _image_of(record: WarcRecord) -> Iterator[tuple[str, bytes]]:
    try:
        response = parse_response(record.block)
    except OSError:
        return
    body = decode_body(response, _MOST_BYTES) if response.media_type.startswith("image/") else None
    if body:
        yield record.field("WARC-Target-URI") or "", body


def show_images(examples: int, folder: Path | None) -> None:
    urls_of: dict[bytes, set[str]] = defaultdict(set)
    single, decoded, refused = [], 0, 0
    for url, encoded in real_images():
        urls_of[encoded].add(url)
        try:
            rgb = decode_rgb(encoded)
        except ImageDecodeError:
            refused += 1
            continue
        decoded += 1
        if is_single_colour(rgb):
            single.append((url, encoded, rgb.shape))
    print(f"\nsingle_colour: {len(single):,} of {decoded:,} images, and {refused:,} that cannot be decoded")
    for number, (url, encoded, shape) in enumerate(sample(single, examples)):
        print(f"    {shape[1]} x {shape[0]}  {url}")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"single-{number:02d}.img").write_bytes(encoded)
    shared = sorted((len(urls), sorted(urls)[0], encoded) for encoded, urls in urls_of.items() if len(urls) > 1)
    print(f"\nmax_urls_per_image = 1: {len(shared):,} files of {len(urls_of):,}")
    for number, (count, url, encoded) in enumerate(sample(shared, examples)):
        print(f"    {count} URLs, {len(encoded):,} bytes, such as {url}")
        if folder is not None:
            (folder / f"shared-{number:02d}.img").write_bytes(encoded)


if __name__ == "__main__":
    main()
