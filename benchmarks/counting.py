"""Count the words and bigrams of a generated dump: rate and peak memory of `wit queries build`.

    python -m benchmarks.counting --dir DIR [--gigabytes 2]

The dump is a multistream one. Its words follow Zipf's law over a million, so that new bigrams keep occurring; a third
of the text is markup. It is generated once per DIR.
"""

import argparse
import bz2
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

VOCABULARY = 1_000_000
PAGES_PER_STREAM = 100
HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">
  <siteinfo>
    <dbname>benchwiki</dbname>
    <base>https://bench.wikipedia.org/wiki/Main_Page</base>
    <namespaces><namespace key="0" case="first-letter" /><namespace key="6">File</namespace></namespaces>
  </siteinfo>
"""


def make_words(rng: np.random.Generator) -> np.ndarray:
    """Return different words of 2 to 10 letters or more, short ones first, as frequent words are."""
    letters = np.frombuffer(b"etaoinshrdlcumwfgypbvk", dtype="S1")
    longest = letters[rng.integers(0, len(letters), (2 * VOCABULARY, 10))].view("S10").ravel().tolist()
    sizes = rng.integers(2, 11, 2 * VOCABULARY).tolist()
    words = {word[:size].decode() for word, size in zip(longest, sizes, strict=True)}
    return np.array(sorted(words, key=lambda word: (len(word), word))[:VOCABULARY], dtype=object)


def make_page(number: int, words: np.ndarray, rng: np.random.Generator) -> str:
    ranks = np.minimum(rng.zipf(1.25, 3_000) - 1, len(words) - 1)
    text = words[ranks]
    links = rng.integers(0, len(text), 150)
    text[links] = ["[[" + word + " (thing)|" + word + "]]" for word in text[links]]
    lines = [" ".join(text[i : i + 100]) for i in range(0, len(text), 100)]
    reference = (
        "&lt;ref name=&quot;a&quot;&gt;{{cite book |last=Smith |title=A title |year=1999 |isbn=0-00 }}&lt;/ref&gt;"
    )
    body = f"{{{{Infobox thing\n| name = {text[0]}\n| x = 1\n}}}}\n" + f".{reference}\n\n== Part ==\n".join(lines)
    return (
        f"  <page>\n    <title>Page {number}</title>\n    <ns>0</ns>\n    <id>{number}</id>\n"
        f"    <revision>\n      <model>wikitext</model>\n      <text>{body}</text>\n    </revision>\n  </page>\n"
    )


def make_dump(path: Path, size_bytes: int) -> int:
    """Write a multistream dump of at least `size_bytes` of XML; return their number."""
    rng = np.random.default_rng(1)
    words = make_words(rng)
    number = written = 0
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(bz2.compress(HEADER.encode(), 1))
        while written < size_bytes:
            stream = "".join(make_page(number + i, words, rng) for i in range(PAGES_PER_STREAM)).encode()
            file.write(bz2.compress(stream, 1))
            number += PAGES_PER_STREAM
            written += len(stream)
        file.write(bz2.compress(b"</mediawiki>\n", 1))
    temporary.rename(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    dump = args.dir / "benchwiki-pages-articles-multistream.xml.bz2"
    size = args.dir / "bytes"
    if not dump.exists():
        size.write_text(str(make_dump(dump, int(args.gigabytes * 1e9))))
    xml_bytes = int(size.read_text())
    out = args.dir / "queries.parquet"
    command = [sys.executable, "-m", "pipeline.cli", "queries", "build", "--dump", str(dump), "--out", str(out)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    wall_s = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = usage.ru_utime + usage.ru_stime
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'XML GB':>8} {'wall s':>8} {'CPU s':>8} {'MB/s of CPU':>12} {'peak MB':>8}")
    megabytes_per_cpu_s = xml_bytes / 1e6 / cpu_s
    peak_mb = usage.ru_maxrss / 1024
    print(f"{xml_bytes / 1e9:8.2f} {wall_s:8.0f} {cpu_s:8.0f} {megabytes_per_cpu_s:12.2f} {peak_mb:8.0f}")
    figures = {"xml_bytes": xml_bytes, "wall_s": wall_s, "cpu_s": cpu_s, "xml_mb_per_cpu_s": megabytes_per_cpu_s}
    print(json.dumps(figures | {"peak_mb": peak_mb}))


if __name__ == "__main__":
    main()
