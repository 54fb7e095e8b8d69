"""Images that a source holds itself, in tars: read from there by byte ranges, without a request to the web.

What is checked of an image from the web is checked here, too: block lists, what the file says of its use, its size.
"""

import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from urllib.parse import urlsplit

import fsspec

from pipeline.config.fetch import FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.errors import UserError, one_line
from pipeline.fetching.consent import ConsentRecord
from pipeline.fetching.decode import Stated, decode_noted
from pipeline.fetching.outcome import FetchFailure, Outcome, failed
from pipeline.fetching.part import Part, StoredAt
from pipeline.records import Reason

_IMAGES_AT_ONCE = 64


def take_stored(
    part: Part, tars: Mapping[str, str], config: FetchConfig, block_lists: BlockLists, decoders: Executor
) -> None:
    """Give each URL of `part` whose image is in a tar its outcome; `tars` has the path of each source.

    Raises:
        UserError: a tar cannot be read.
    """
    todo = sorted((part.stored[number], number) for number, _ in part.pending() if number in part.stored)
    for source, spans in itertools.groupby(todo, key=lambda one: one[0].source):
        if source not in tars:
            raise UserError(f"{source} has images of this plan, but is not in [[sources]]: run `wit build` again")
        for chunk in _chunks(spans):
            contents = _read(tars[source], [at for at, _ in chunk])
            running = [
                decoders.submit(_decode, part, number, at, content, config, block_lists)
                for (at, number), content in zip(chunk, contents, strict=True)
            ]
            for (_, number), decoding in zip(chunk, running, strict=True):
                outcome, consent = decoding.result()
                part.finish_kept(number, outcome, consent.times)


def _chunks(spans: Iterable[tuple[StoredAt, int]]) -> Iterator[list[tuple[StoredAt, int]]]:
    spans = iter(spans)
    while chunk := list(itertools.islice(spans, _IMAGES_AT_ONCE)):
        yield chunk


def _read(path: str, spans: list[StoredAt]) -> list[bytes]:
    """Return the bytes of some images of one tar, read together where the store can."""
    try:
        fs, inner = fsspec.core.url_to_fs(path)
        starts, ends = [at.offset for at in spans], [at.offset + at.size for at in spans]
        return list(fs.cat_ranges([inner] * len(spans), starts, ends, on_error="raise"))
    except Exception as error:  # any error of a store: missing package, credentials or network
        raise UserError(f"{path}: {one_line(error)}") from error


def _decode(
    part: Part, number: int, at: StoredAt, content: bytes, config: FetchConfig, block_lists: BlockLists
) -> tuple[Outcome, ConsentRecord]:
    url, consent = part.urls[number], ConsentRecord()
    stated = Stated(is_from_tar=True, original=at.stated_hash)
    try:
        listed = block_lists.of_url(url, urlsplit(url).hostname or "")
        consent.heed("lists", [listed] if listed else [], config.consent)
        if len(content) < at.size:
            raise FetchFailure(Reason.TRUNCATED, f"the tar ends {at.size - len(content)} bytes before its image does")
        if at.size > config.max_bytes:
            raise FetchFailure(Reason.TOO_LARGE, f"more than {config.max_bytes} bytes")
    except FetchFailure as failure:
        return part.journal.add_outcome(url, consent.add_to(failed(failure)), None, consent.times), consent
    return decode_noted(part.journal, url, io.BytesIO(content), None, config, block_lists, consent, stated), consent
