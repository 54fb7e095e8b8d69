"""The cost of the consent checks per image: `python -m benchmarks.consent PHOTOS.tar`, in microseconds on one core.

image     metadata of the file: PLUS, TDM, C2PA, rights; then of the first photos in other formats, without metadata
headers   a typical response without statements, then one with all of them, as the hosts of a crawl repeat them
robots    the statements of a parsed robots.txt about a URL: a plain file, then Cloudflare's managed one
lists     a URL against a domain list and a list of a million hashed URLs, another URL each time

Then what one image costs in sum: usually, and where everything is stated and listed. Parsing a robots.txt is apart: it
is done once per host.
"""

import hashlib
import io
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial

from multidict import CIMultiDict
from PIL import Image

from pipeline.config.fetch import FetchConfig
from pipeline.consent.ai_crawlers import PRESET, preset_tokens, product_tokens
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.consent.response_headers import statements_of_headers
from pipeline.consent.robots_rules import read_usage_rules
from pipeline.fetching.opt_out import refusal, wanted_directives

ROUNDS = 10
OTHER_FORMATS = ("PNG", "WEBP", "GIF", "AVIF", "TIFF")
URLS = [f"https://img.example.com/images/{number}/photo-of-a-lake.jpg" for number in range(10_000)]
AGENT = FetchConfig(allow_private_hosts=True).agent
DIRECTIVES = wanted_directives(product_tokens([AGENT, PRESET]))
USUAL = CIMultiDict({"Content-Type": "image/jpeg", "Date": "x", "Server": "x", "ETag": "x", "Cache-Control": "x"})
STATED = CIMultiDict({"Content-Usage": "train-ai=y", "TDM-Reservation": "0", "X-Robots-Tag": "nofollow"})
MANAGED = "User-agent: *\nContent-Signal: search=yes,ai-train=yes\nAllow: /\n" + "".join(
    f"\nUser-agent: {token}\nDisallow: /private/\n" for token in preset_tokens()
)


def files_of(path: str, most: int = 2_000) -> list[bytes]:
    with tarfile.open(path) as tar:
        names = (m for m in tar if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")))
        return [tar.extractfile(member).read() for member, _ in zip(names, range(most), strict=False)]  # type: ignore


def encoded_as(image_format: str, photo: bytes) -> bytes:
    with Image.open(io.BytesIO(photo)) as image:
        file = io.BytesIO()
        image.convert("RGB").save(file, image_format)
        return file.getvalue()


def measure(name: str, work: Callable[[], object], count: int) -> float:
    """Print and return the best of several rounds, per item."""
    taken_s = []
    for _ in range(ROUNDS):
        started_s = time.process_time()
        work()
        taken_s.append(time.process_time() - started_s)
    each_us = min(taken_s) / count * 1e6
    print(f"{name:40} {each_us:8.2f} us")
    return each_us


def repeat(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def read_all(files: Sequence[bytes]) -> None:
    for file in files:
        read_image_metadata(file)


def headers(lines: "CIMultiDict[str]") -> None:
    statements_of_headers(lines)
    refusal(lines.getall("X-Robots-Tag", ()), DIRECTIVES, datetime.now(UTC))


def measure_robots(name: str, text: str) -> float:
    rules = read_usage_rules(text, AGENT, product_tokens([PRESET]))
    each_us = measure(name, lambda: [list(rules.statements(url)) for url in URLS], len(URLS))
    measure(
        f"{name}: parsing, once per host",
        repeat(lambda: read_usage_rules(text, AGENT, product_tokens([PRESET])), 1_000),
        1_000,
    )
    return each_us


def main(paths: Sequence[str]) -> None:
    images_us = []
    for path in paths:
        files = files_of(path)
        name = f"image ({len(files)} files of {path.rpartition('/')[2]})"
        images_us.append(measure(name, partial(read_all, files), len(files)))
    for name in OTHER_FORMATS:
        files = [encoded_as(name, file) for file in files_of(paths[0], 20)]
        size_kb = sum(map(len, files)) // len(files) // 1000
        measure(f"image ({name}, {size_kb} kB)", partial(read_all, files), len(files))
    silent_us = measure("headers, no statements", repeat(lambda: headers(USUAL), 10_000), 10_000)
    stated_us = measure("headers, with statements", repeat(lambda: headers(STATED), 10_000), 10_000)
    plain_us = measure_robots("robots, plain", "User-agent: *\nDisallow: /x\n")
    managed_us = measure_robots("robots, managed", MANAGED)
    hashes = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(1_000_000))
    lists = BlockLists.read({"domains": ["other.example"], "url_hashes": hashes})
    lists_us = measure("lists", lambda: [lists.of_url(url, "img.example.com") for url in URLS], len(URLS))
    print(f"{'usually':40} {sum(images_us) / len(images_us) + silent_us + plain_us:8.2f} us")
    print(f"{'everything stated and listed':40} {max(images_us) + stated_us + managed_us + lists_us:8.2f} us")


if __name__ == "__main__":
    main(sys.argv[1:])
