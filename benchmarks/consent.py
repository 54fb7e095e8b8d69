"""The cost of the consent checks per image: `python -m benchmarks.consent PHOTOS.tar`, in microseconds on one core.

image     metadata of the file: PLUS, TDM, C2PA, rights
headers   a typical response without statements, then one with all of them
robots    the statements of a parsed robots.txt about a URL: a plain file, then Cloudflare's managed one
lists     a URL against a domain list and a list of a million hashed URLs
"""

import hashlib
import sys
import tarfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from multidict import CIMultiDict

from pipeline.config import FetchConfig
from pipeline.consent.ai_crawlers import PRESET, preset_tokens, product_tokens
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.consent.response_headers import statements_of_headers
from pipeline.consent.robots_rules import read_usage_rules
from pipeline.fetching.opt_out import refusal

ROUNDS = 5
URL = "https://example.com/images/a.jpg"
AGENT = FetchConfig(allow_private_hosts=True).agent
USUAL = CIMultiDict({"Content-Type": "image/jpeg", "Date": "x", "Server": "x", "ETag": "x", "Cache-Control": "x"})
STATED = CIMultiDict({"Content-Usage": "train-ai=y", "TDM-Reservation": "0", "X-Robots-Tag": "nofollow"})
MANAGED = "User-agent: *\nContent-Signal: search=yes,ai-train=yes\nAllow: /\n" + "".join(
    f"\nUser-agent: {token}\nDisallow: /private/\n" for token in preset_tokens()
)


def files_of(path: str, most: int = 2_000) -> list[bytes]:
    with tarfile.open(path) as tar:
        names = (m for m in tar if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg", ".png", ".webp")))
        return [tar.extractfile(member).read() for member, _ in zip(names, range(most), strict=False)]  # type: ignore


def measure(name: str, work: Callable[[], object], count: int) -> None:
    """Print the best of several rounds, per item."""
    taken_s = []
    for _ in range(ROUNDS):
        started_s = time.process_time()
        work()
        taken_s.append(time.process_time() - started_s)
    print(f"{name:32} {min(taken_s) / count * 1e6:8.2f} us")


def repeat(work: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def headers(lines: "CIMultiDict[str]") -> None:
    list(statements_of_headers(lines))
    refusal(lines.getall("X-Robots-Tag", ()), agent=AGENT, now=datetime.now(UTC))


def main(paths: Iterable[str]) -> None:
    for path in paths:
        files = files_of(path)
        measure(
            f"image ({len(files)} files)",
            lambda files=files: [read_image_metadata(f) for f in files],
            len(files),
        )
    for name, lines in (("headers, no statements", USUAL), ("headers, with statements", STATED)):
        measure(name, repeat(lambda lines=lines: headers(lines), 10_000), 10_000)
    for name, text in (("robots, plain", "User-agent: *\nDisallow: /x\n"), ("robots, managed", MANAGED)):
        rules = read_usage_rules(text, AGENT, product_tokens([PRESET]))
        measure(name, repeat(lambda rules=rules: list(rules.statements(URL)), 10_000), 10_000)
        measure(
            f"{name}: parsing, once per host",
            repeat(lambda t=text: read_usage_rules(t, AGENT, product_tokens([PRESET])), 1_000),
            1_000,
        )
    hashes = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(1_000_000))
    lists = BlockLists.read({"domains": ["other.example"], "url_hashes": hashes})
    measure("lists", repeat(lambda: lists.of_url("https://img.example.com/a.jpg", "img.example.com"), 10_000), 10_000)


if __name__ == "__main__":
    main(sys.argv[1:])
