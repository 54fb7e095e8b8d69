"""Measure the precision of language identification on real alt texts.

    python -m benchmarks.languages

The texts are those of the images in the folder of real data (WIT_SHARED_DATA): its WARC files, 130 saved pages and
1,000 rows of LAION-400M, each text once. Their languages are not labelled, so the page's own `lang` is the reference if
there is one; for the rest, the benchmark checks whether the script of the predicted language occurs in the text.
"""

import argparse
import os
import re
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from pipeline.sources import language
from pipeline.sources.charset import decode_page
from pipeline.sources.html import extract_images
from pipeline.web.http_payload import decode_body, parse_response
from pipeline.web.warc_records import WarcRecord, read_records

SHARED = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
_MAX_PAGE_BYTES = 8 << 20


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    if not SHARED.is_dir():
        sys.exit("benchmarks.languages: needs the folder of real data: set WIT_SHARED_DATA")
    stated = {text: said for text, said in texts() if text}
    found = language.identify_languages(pa.array(list(stated), pa.string())).to_pylist()
    raw = without_scripts(list(stated))
    right, judged, labelled, refused = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    examples: dict[str, list[str]] = defaultdict(list)
    for (text, said), code, before in zip(stated.items(), found, raw, strict=True):
        labelled[code] += 1
        refused[before] += before != code
        examples[code].append(text)
        if said:
            judged[code] += 1
            right[code] += said == code
    table = Table("label", "texts", "of pages with a lang", "equal to it", "refused: script absent")
    for code, count in labelled.most_common():
        share = f"{right[code] / judged[code]:.1%}" if judged[code] and code != "und" else "-"
        table.add_row(code, f"{count:,}", f"{judged[code]:,}", share, f"{refused[code]:,}")
    for code in refused.keys() - labelled.keys():
        if refused[code]:
            table.add_row(code, "0", "0", "-", f"{refused[code]:,}")
    Console().print(table)
    print(f"{len(stated):,} texts")


def without_scripts(captions: list[str]) -> list[str]:
    """Return the labels of the model without the check of scripts."""
    with_scripts = language._with_scripts
    try:
        language._with_scripts = lambda starts, codes: codes  # type: ignore[assignment]
        labels = language.identify_languages(pa.array(captions, pa.string())).to_pylist()
        return [str(label) for label in labels]
    finally:
        language._with_scripts = with_scripts


def texts() -> Iterator[tuple[str, str | None]]:
    """Yield the alt texts, each with the language that its page states, or None."""
    for path in sorted((SHARED / "web").glob("*.warc.gz")):
        with path.open("rb") as stream:
            for record in read_records(stream):
                if isinstance(record, WarcRecord) and record.field("WARC-Type") == "response":
                    yield from _texts_of_record(record)
    with tarfile.open(SHARED / "web" / "html_readability_130.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.endswith("source.html"):
                yield from _texts_of_page(archive.extractfile(member).read(), None)  # type: ignore[union-attr]
    laion = pq.read_table(SHARED / "text" / "laion400m_1000.parquet")["TEXT"]
    yield from ((" ".join(text.split()), None) for text in pc.drop_null(laion).to_pylist())


def _texts_of_record(record: WarcRecord) -> Iterator[tuple[str, str | None]]:
    try:
        response = parse_response(record.block)
    except OSError:
        return
    body = decode_body(response, _MAX_PAGE_BYTES) if response.media_type == "text/html" else None
    if body:
        yield from _texts_of_page(body, response.charset)


def _texts_of_page(page: bytes, charset: str | None) -> Iterator[tuple[str, str | None]]:
    decoded = decode_page(page, charset)
    if decoded is None:
        return
    stated = re.search(r"<html[^<>]*\blang\s*=\s*[\"']?([A-Za-z]{2,3})", decoded.text)
    for image in extract_images(decoded.text).images:
        for field, text in image.texts:
            if field == "alt":
                yield text, stated[1].lower() if stated else None


if __name__ == "__main__":
    main()
