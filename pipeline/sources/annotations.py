"""The JSON files of COCO, Visual Genome, RedCaps and SBU Captions, as they come: read as a stream, never whole.

    coco           {"images": [{"id", "coco_url", ...}], "annotations": [{"image_id", "caption"}]}
    visual-genome  [{"id", "regions": [{"image_id", "phrase"}]}], and image_data.json: [{"image_id", "url"}]
    redcaps        {"annotations": [{"url", "raw_caption", "permalink", ...}]}
    sbu            {"image_urls": [...], "captions": [...]}

Of the first two the URLs of the images are held in memory, 120,000 each.
"""

import gzip
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, BinaryIO, cast

import fsspec
import ijson

from pipeline.errors import UserError, one_line
from pipeline.records import Reason
from pipeline.sources.presets import PRESETS, Layout

_MAX_ITEM_BYTES = 64 << 20
_BUFFER_BYTES = 1 << 16


class _Bounded:
    """A stream that ends with an error where one item of it is made to fill the memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.since_item = 0

    def read(self, size: int) -> bytes:
        self.since_item += size
        if self.since_item > _MAX_ITEM_BYTES:
            raise ValueError("an item is too long")
        return cast(bytes, self._stream.read(size))


def read_annotations(stream: BinaryIO, path: str, layout: Layout) -> Iterator[list[Any] | Reason]:
    """Yield the rows of a file in the order of `layout.columns`; last `DAMAGED_FILE`, where it breaks off.

    Raises:
        UserError: a file that belongs to it is not there; a column is none of its keys; it is another JSON file.
    """
    preset = layout.source.preset or ""
    read = _READERS.get(preset)
    if read is None:
        names = ", ".join(map(repr, _READERS))
        raise UserError(f"{path}: a .json file needs sources.preset = one of {names}; one object per line is .jsonl")
    seen = is_any = False
    try:
        for item in read(stream, path):
            is_any = True
            if isinstance(item, dict):
                if not seen:
                    layout.find(list(dict.fromkeys([*item, *layout.source.keep])), path)
                seen = True
                values = [item.get(name) for name in layout.columns]
                texts = (item.get(name) for name in layout.text_columns)
                yield values if all(t is None or isinstance(t, str) for t in texts) else Reason.DAMAGED_RECORD
            else:
                yield Reason.DAMAGED_RECORD
    except (ijson.JSONError, ValueError, EOFError, gzip.BadGzipFile):
        yield Reason.DAMAGED_FILE
        return
    if not is_any:
        raise UserError(f"{path}: holds nothing that preset = {preset!r} reads, which is for {PRESETS[preset].files}")


def _plain(stream: BinaryIO, path: str) -> BinaryIO:
    stream.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if path.endswith(".gz") else stream


def _items(stream: BinaryIO, prefix: str) -> Iterator[Any]:
    bounded = _Bounded(stream)
    for item in ijson.items(bounded, prefix, buf_size=_BUFFER_BYTES, use_float=True):
        bounded.since_item = 0
        yield item


def _coco(stream: BinaryIO, path: str) -> Iterator[Any]:
    images = {}
    with suppress(ijson.JSONError, EOFError):  # the second pass says so
        for image in _items(_plain(stream, path), "images.item"):
            if isinstance(image, dict):
                images[image.get("id")] = {name: image.get(name) for name in ("coco_url", "flickr_url", "license")}
    nothing = {"coco_url": None, "flickr_url": None, "license": None}
    for item in _items(_plain(stream, path), "annotations.item"):
        yield item | images.get(item.get("image_id"), nothing) if isinstance(item, dict) else item


def _visual_genome(stream: BinaryIO, path: str) -> Iterator[Any]:
    folder = path.rpartition("/")[0]
    beside = f"{folder}/image_data.json" if folder else "image_data.json"
    try:
        with fsspec.open(beside, "rb") as opened:
            urls = {item["image_id"]: item["url"] for item in _items(opened, "item")}
    except (OSError, KeyError, TypeError, ijson.JSONError) as error:
        raise UserError(f"{beside}: Visual Genome's image addresses cannot be read: {one_line(error)}") from None
    for item in _items(_plain(stream, path), "item.regions.item"):
        yield item | {"url": urls.get(item.get("image_id"))} if isinstance(item, dict) else item


def _redcaps(stream: BinaryIO, path: str) -> Iterator[Any]:
    return _items(_plain(stream, path), "annotations.item")


def _sbu(stream: BinaryIO, path: str) -> Iterator[Any]:
    with fsspec.open(path, "rb") as second:
        urls = _items(_plain(stream, path), "image_urls.item")
        captions = _items(_plain(second, path), "captions.item")
        for url, caption in itertools.zip_longest(urls, captions):
            yield {"image_urls": url, "captions": caption}


_READERS: dict[str, Callable[[BinaryIO, str], Iterator[Any]]] = {
    "coco": _coco,
    "visual-genome": _visual_genome,
    "redcaps": _redcaps,
    "sbu": _sbu,
}
