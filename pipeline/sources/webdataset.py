"""Shards that people already have: tars with an image, a caption and a JSON object for each sample, parquet beside.

    00000.tar: 000000003.jpg 000000003.txt 000000003.json ...      (img2dataset, webdataset, and our own shards)
    00000.parquet: one row for each sample, with `key`             (read where the tar has no JSON)

The images stay where they are: a candidate says where in the tar its image is, and the fetch reads it from there.
"""

import base64
import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from dedup.eval_sets.read import IMAGE_SUFFIXES
from pipeline.config import PairsConfig
from pipeline.config.sources import SourceConfig
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, Origin, SourceBatch

_MAX_TEXT_BYTES = 4 << 20
_HASH_BYTES = 1 << 20
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass
class _Sample:
    """The members of one sample; `image` is (offset, size) in the tar."""

    key: str
    image: tuple[int, int] | None = None
    image_sha256: bytes | None = None
    text: str | None = None
    facts: dict[str, Any] | None = None
    is_broken: bool = False


@dataclass
class _Reader:
    stream: BinaryIO
    path: str
    source: SourceConfig
    builder: BatchBuilder
    beside: dict[str, dict[str, Any]] | None = field(default=None)

    def add(self, sample: _Sample) -> None:
        """Judge one sample."""
        facts = sample.facts if sample.facts is not None else self._row_beside(sample.key)
        if sample.is_broken:
            self.builder.dropped[Reason.DAMAGED_RECORD] += 1
            return
        if sample.image is None:
            self.builder.dropped[Reason.NO_IMAGE] += 1
            return
        caption = facts.get(_one(self.source.caption))
        if sample.text is not None and "caption" not in self.source.model_fields_set:
            caption = sample.text
        url, page_url = facts.get(self.source.url), facts.get("page_url")
        if not isinstance(url, str) or not url:
            url = named_by_content(sample.image_sha256 or _sha256(self.stream, *sample.image))
        stated = facts.get("sha256")
        origin = Origin(
            source_offset=sample.image[0],
            image_bytes=sample.image[1],
            stated_hash=f"sha256:{stated}" if isinstance(stated, str) and _SHA256.fullmatch(stated) else None,
            extra=kept_columns(facts, self.source.keep),
        )
        self.builder.add_row(
            url,
            caption if isinstance(caption, str) else None,
            page_url if isinstance(page_url, str) else None,
            origin,
        )

    def _row_beside(self, key: str) -> dict[str, Any]:
        """Return the row of a sample in the Parquet file beside the tar; empty where there is none."""
        if self.beside is None:
            self.beside = _read_beside(
                self.path, [self.source.url, _one(self.source.caption), "sha256", *self.source.keep]
            )
        return self.beside.get(key, {})


def read_webdataset(stream: BinaryIO, path: str, source: SourceConfig, limits: PairsConfig) -> Iterator[SourceBatch]:
    """Yield the candidates of a tar; every sample is one row.

    A sample with a text or JSON that cannot be read is `damaged_record`, one without an image `no_image`; where the
    tar breaks off, `damaged_file` counts once.
    """
    reader = _Reader(stream, path, source, BatchBuilder(limits))
    is_local = "://" not in path  # then images are skipped; a store would be asked again after each
    sample: _Sample | None = None
    try:
        with tarfile.open(fileobj=stream, mode="r:" if is_local else "r|") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or it remembers them all
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if sample is None or sample.key != folder + slash + stem:
                    if sample is not None:
                        reader.add(sample)
                    sample = _Sample(folder + slash + stem)
                _add_member(sample, tar, member, suffix.lower(), is_local)
                if reader.builder.is_full:
                    yield reader.builder.take()
    except (tarfile.TarError, EOFError):
        reader.builder.dropped[Reason.DAMAGED_FILE] += 1
        sample = None  # its image may be cut
    if sample is not None:
        reader.add(sample)
    yield from reader.builder.finish()


def _add_member(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, is_local: bool) -> None:
    if suffix in IMAGE_SUFFIXES and sample.image is None:
        sample.image = member.offset_data, member.size
        if not is_local:
            sample.image_sha256 = _sha256(_opened(tar, member), 0, member.size, is_at_start=True)
    elif suffix in ("txt", "json"):
        text = _opened(tar, member).read(_MAX_TEXT_BYTES)
        try:
            if suffix == "txt":
                sample.text = text.decode()
            elif not isinstance(facts := orjson.loads(text), dict):
                raise ValueError
            else:
                sample.facts = facts
        except ValueError:
            sample.is_broken = True


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> BinaryIO:
    return cast(BinaryIO, tar.extractfile(member))


def _sha256(stream: BinaryIO, offset: int, size: int, *, is_at_start: bool = False) -> bytes:
    """Return the SHA-256 of some bytes of a file.

    Raises:
        EOFError: it ends before.
    """
    if not is_at_start:
        stream.seek(offset)
    hashed = hashlib.sha256()
    while size and (part := stream.read(min(size, _HASH_BYTES))):
        hashed.update(part)
        size -= len(part)
    if size:
        raise EOFError("the tar breaks off in an image")
    return hashed.digest()


def named_by_content(sha256: bytes) -> str:
    """Return the name of an image that has no URL: a URI of its SHA-256 (RFC 6920)."""
    return f"ni:///sha-256;{base64.urlsafe_b64encode(sha256).decode().rstrip('=')}"


def kept_columns(facts: dict[str, Any], keep: Sequence[str]) -> str | None:
    """Return the columns to carry along as a JSON object, None where there are none."""
    kept = {name: facts[name] for name in keep if facts.get(name) is not None}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS, default=str).decode() if kept else None


def _one(caption: str | Sequence[str]) -> str:
    return caption if isinstance(caption, str) else caption[0]


def _read_beside(path: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Return key -> row of the Parquet file beside a tar, by which samples without JSON are told; {} without one."""
    beside = path.removesuffix(".tar") + ".parquet"
    try:
        with fsspec.open(beside, "rb") as opened:
            file = pq.ParquetFile(opened)
            if "key" not in file.schema_arrow.names:
                return {}
            wanted = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
            return {str(row["key"]): row for row in file.read(["key", *wanted], use_threads=False).to_pylist()}
    except FileNotFoundError:
        return {}
    except pa.ArrowException:
        return {}
