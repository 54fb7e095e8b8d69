"""Read the examples of an evaluation set from the three layouts such sets come in, one at a time.

    folder      PATH/CLASS/*.png, or the images directly in PATH
    webdataset  .tar files of samples that share a key: key.jpg with key.cls, key.txt or key.json
    parquet     a column of encoded images, as bytes or as the {bytes, path} of Hugging Face datasets

Nothing is skipped silently: a file that is not a readable example is yielded with a `failure`. PATH may be any fsspec
URL; for webdataset and parquet it is a file, a folder or a glob. A label may be a list: its parts are joined by commas.
Sets are untrusted: only regular files are read, and of each example no more than a limit.
"""

import json
import math
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from dedup.errors import DedupError
from dedup.eval_sets.registry import Kind
from dedup.eval_sets.tars import Sample, Stray, read_samples
from queries.parquet_pages import GuardedParquet, PageLimits

Failure = Literal["", "other_file", "no_image", "too_large"]

_SUFFIXES_OF_PPM = ("ppm", "pgm", "pbm", "pnm")
IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", *_SUFFIXES_OF_PPM]
)
MAX_EXAMPLE_BYTES = 1 << 26
"""Limit of an encoded image; a larger one is `too_large`."""
MAX_LABEL_BYTES = 1 << 20

_OTHER_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

IMAGE_PAGES = PageLimits(page_bytes=1 << 26, delta_page_bytes=1 << 26, growth=20, rows=8)
"""Of a Parquet file. A row may be large, and images hardly shrink when they are packed again."""


@dataclass(frozen=True, slots=True)
class Example:
    """One image of an evaluation set, still encoded. `eval_id` is unique in the set and the same on every machine."""

    eval_id: str
    label: str | None
    encoded: bytes
    failure: Failure = ""
    captions: tuple[str, ...] = ()


def read_examples(
    kind: str,
    path: str,
    *,
    image_column: str = "image",
    label_column: str | None = None,
    caption_column: str | None = None,
) -> Iterator[Example]:
    """Yield the examples in a fixed order.

    `label_column` names the column (parquet) or the json field (webdataset) of the class; "label" if there is one.
    `caption_column` names those of the captions, a text or a list of texts; of webdataset also "txt", the text file.
    Bytes of a name that are not UTF-8 become `\\xff`; a repeated name gets the suffix `#2`.
    Raises `FileNotFoundError` if the path does not exist, `DedupError` if it is not of this `kind`.
    """
    try:
        fs, root = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:  # unknown protocol, or its package is not installed
        raise DedupError(f"{path}: {error}") from error
    if kind == "folder" and caption_column is not None:
        raise DedupError(f"{path}: a folder has no captions; kinds 'webdataset' and 'parquet' do")
    if kind == "folder":
        return _named(_read_folder(fs, root))
    if kind == "webdataset":
        return _named(_read_webdataset(fs, root, _Fields(label_column or "label", caption_column)))
    if kind == "parquet":
        return _named(_read_parquet(fs, root, _Columns(image_column, label_column, caption_column)))
    raise DedupError(f"unknown kind {kind!r}: choose one of {', '.join(get_args(Kind))}")


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields of the json files of a WebDataset."""

    label: str
    caption: str | None


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of Parquet files."""

    image: str
    label: str | None
    caption: str | None


def _named(examples: Iterator[Example]) -> Iterator[Example]:
    """Make names and labels storable text, and names unique, because results refer to them."""
    seen = set[str]()
    for example in examples:
        name = unique = as_text(example.eval_id)
        number = 1
        while unique in seen:
            number += 1
            unique = f"{name}#{number}"
        seen.add(unique)
        captions = tuple(map(as_text, example.captions))
        yield replace(example, eval_id=unique, label=example.label and as_text(example.label), captions=captions)


def as_text(name: str) -> str:
    """Escape what is not Unicode text: `\\xff` for a byte of a file name, `\\ud800` for an unpaired surrogate."""
    if name.isascii():
        return name
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()


def _label_text(label: Any, names: Mapping[int, str]) -> str | None:
    """Return a label as text, a class number by its name if it has one; None if it is not the name of a class."""
    if isinstance(label, list):
        return ",".join(filter(None, (_label_text(one, names) for one in label))) or None
    if isinstance(label, float):  # whole numbers become that in a column with gaps
        label = None if math.isnan(label) else int(label) if label.is_integer() else label
    if isinstance(label, int):  # True and False, too: 1 and 0
        return names.get(label, str(int(label)))
    return None if label is None else str(label)


def _captions(value: Any) -> tuple[str, ...]:
    """Return the captions in a field: a text or a list of texts, without empty ones."""
    texts = value if isinstance(value, list) else [value]
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


def _read_folder(fs: Any, root: str) -> Iterator[Example]:
    if not fs.exists(root):
        raise FileNotFoundError(f"{root}: no such folder")
    if not fs.isdir(root):
        raise DedupError(f"{root}: a file, not a folder; kind 'webdataset' reads .tar files, 'parquet' .parquet files")
    for file, info in sorted(fs.find(root, detail=True).items()):
        name = posixpath.relpath(file, root)
        label = posixpath.basename(posixpath.dirname(name)) or None
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or _suffix(name) not in IMAGE_SUFFIXES:
            yield Example(name, label, b"", "other_file")
        else:
            yield Example(name, label, *_content(fs, file, info.get("size")))


def _content(fs: Any, file: str, size: int | None) -> tuple[bytes, Failure]:
    if isinstance(fs, LocalFileSystem):
        if not _is_regular(fs, file):
            return b"", "other_file"
        try:
            with open(file, "rb") as stream:
                content = stream.read(MAX_EXAMPLE_BYTES + 1)  # the size of a growing file is unreliable
        except OSError as error:
            raise DedupError(f"{file}: cannot be read ({error.strerror})") from error
    else:
        content = b"" if size is not None and size > MAX_EXAMPLE_BYTES else fs.cat_file(file)
        size = len(content) if size is None else size
    return (b"", "too_large") if max(len(content), size or 0) > MAX_EXAMPLE_BYTES else (content, "")


@contextmanager
def _opened(fs: Any, file: str) -> Iterator[Any]:
    try:
        stream = fs.open(file, "rb")
    except OSError as error:
        raise DedupError(f"{file}: cannot be opened ({error.strerror or error})") from error
    with stream:
        yield stream


def _is_regular(fs: Any, file: str) -> bool:
    """Return whether a path is a regular file and not a FIFO, a device or a link to one, whose read may never end."""
    try:
        return not isinstance(fs, LocalFileSystem) or stat.S_ISREG(os.stat(file).st_mode)
    except OSError:  # a broken link
        return False


def _read_webdataset(fs: Any, root: str, fields: _Fields) -> Iterator[Example]:
    for name, file in _files(fs, root, TAR_SUFFIXES):
        tar_name = name.split(".tar")[0]
        with _opened(fs, file) as stream:
            try:
                for sample in read_samples(stream, _mode_of(stream, file), _limit_bytes):
                    if isinstance(sample, Stray):
                        yield Example(f"{tar_name}/{sample.name}", None, b"", "other_file")
                    else:
                        yield from _examples_of_sample(tar_name, sample, fields)
            except tarfile.TarError as error:
                raise DedupError(f"{file}: damaged tar file ({error}); copy it again") from error


def _mode_of(stream: Any, file: str) -> Literal["r:", "r:gz"]:
    """Return how to read a tar, by its first bytes: names are not reliable."""
    head = stream.read(6)
    stream.seek(0)
    packed = next((name for start, name in _OTHER_COMPRESSIONS.items() if head.startswith(start)), None)
    if packed is not None:
        raise DedupError(f"{file}: compressed by {packed}; tars are read as they are or compressed by gzip: unpack it")
    return "r:gz" if head.startswith(b"\x1f\x8b") else "r:"


def _limit_bytes(suffix: str) -> int:
    kind = suffix.split(".")[-1]
    return MAX_EXAMPLE_BYTES if kind in IMAGE_SUFFIXES else MAX_LABEL_BYTES if kind in ("cls", "json", "txt") else 0


def _examples_of_sample(tar_name: str, sample: Sample, fields: _Fields) -> Iterator[Example]:
    """Yield each image of a sample; if there are several, their names include the suffix.

    A label or caption belongs to the image of the same name: `0.left.cls` to `0.left.jpg`. `0.cls` belongs to `0.jpg`,
    or to all images if there is none of that name.
    """
    eval_id = f"{tar_name}/{sample.key}"
    texts = {
        member.suffix.lower(): member.content
        for member in sample.members
        if member.content is not None and not _is_image(member.suffix)
    }
    images = [member for member in sample.members if _is_image(member.suffix)]
    if not images and not sample.is_part:
        yield Example(eval_id, _label_of(texts, "", fields.label), b"", "no_image")
    is_shared = not any("." not in image.suffix for image in images)
    for image in images:
        part = posixpath.splitext(image.suffix.lower())[0] + "." if "." in image.suffix else ""
        label = _label_of(texts, part, fields.label)
        captions = _captions_of(texts, part, fields.caption)
        if label is None and is_shared:
            label = _label_of(texts, "", fields.label)
        if not captions and is_shared:
            captions = _captions_of(texts, "", fields.caption)
        is_only = len(images) == 1 and not sample.is_part
        name = eval_id if is_only else f"{eval_id}.{image.suffix}"
        yield Example(name, label, image.content or b"", "too_large" if image.content is None else "", captions)


def _is_image(suffix: str) -> bool:
    return suffix.lower().split(".")[-1] in IMAGE_SUFFIXES


def _label_of(texts: Mapping[str, bytes], part: str, label_field: str) -> str | None:
    if (content := texts.get(f"{part}cls")) is not None:
        return content.decode("utf-8", "replace").strip()
    if (text := _label_text(_json_field(texts, part, label_field), {})) is not None:
        return text
    content = texts.get(f"{part}txt")
    return None if content is None else content.decode("utf-8", "replace").strip()


def _json_field(texts: Mapping[str, bytes], part: str, field: str) -> Any:
    try:
        fields = json.loads(texts.get(f"{part}json", b"null"))
    except (ValueError, RecursionError):
        return None
    return fields.get(field) if isinstance(fields, dict) else None


def _captions_of(texts: Mapping[str, bytes], part: str, field: str | None) -> tuple[str, ...]:
    if field is None:
        return ()
    if field == "txt":
        return _captions(texts.get(f"{part}txt", b"").decode("utf-8", "replace").strip())
    return _captions(_json_field(texts, part, field))


def _read_parquet(fs: Any, root: str, columns: _Columns) -> Iterator[Example]:
    for name, file in _files(fs, root, (".parquet",)):
        with _opened(fs, file) as stream:
            try:
                parquet = GuardedParquet(stream, IMAGE_PAGES)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DedupError(f"{file}: not a parquet file ({first_line(error)})") from error
            examples = _read_table(parquet, name.removesuffix(".parquet"), file, columns)
            try:
                yield from examples
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise DedupError(
                    f"{file}: the parquet file is damaged or unpacks to too much ({first_line(error)}); copy it again"
                ) from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _read_table(parquet: GuardedParquet, name: str, file: str, columns: _Columns) -> Iterator[Example]:
    schema = parquet.schema
    for column in (columns.image, columns.label, columns.caption):
        if column is not None and column not in schema.names:
            raise DedupError(f"{file}: no column {column!r}; its columns are {', '.join(schema.names)}")
    label_column = columns.label or ("label" if "label" in schema.names else None)
    _check_image_type(schema.field(columns.image).type, file, columns.image)
    class_names = _class_names(schema, label_column)
    wanted = dict.fromkeys(filter(None, (columns.image, label_column, columns.caption)))
    row = 0
    for batch in parquet.batches(list(wanted)):
        labels, captions = (_values(batch, column) for column in (label_column, columns.caption))
        for image, label, texts in zip(_images(batch.column(columns.image)), labels, captions, strict=True):
            text = _label_text(label, class_names)
            yield Example(f"{name}/{row:07d}", text, *image, captions=_captions(texts))
            row += 1


def _values(batch: pa.RecordBatch, column: str | None) -> list[Any]:
    return [None] * len(batch) if column is None else batch.column(column).to_pylist()


def _images(column: pa.Array) -> Iterator[tuple[bytes, Failure]]:
    """Yield the encoded images of a column; a large one is not copied to look at it."""
    for image in pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column:
        size = image.as_buffer().size if image.is_valid else 0
        if size > MAX_EXAMPLE_BYTES:
            yield b"", "too_large"
        else:
            yield (image.as_py(), "") if size else (b"", "no_image")


def holds_images(kind: pa.DataType) -> bool:
    """Return whether a column of this type can hold encoded images: bytes, or a struct with a field of bytes."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_image_type(kind: pa.DataType, file: str, column: str) -> None:
    if not holds_images(kind):
        raise DedupError(f"{file}: column {column!r} is {kind}; need encoded images, as bytes or {{bytes, path}}")


def _class_names(schema: pa.Schema, label_column: str | None) -> dict[int, str]:
    """Return the names behind class numbers, where the file carries them in Hugging Face's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        feature = features[label_column]
        return dict(enumerate(feature.get("feature", feature)["names"]))  # "feature": of a list of classes
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _files(fs: Any, root: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return (name below the root, path) of a file, of a folder's files with one of the suffixes, or of a glob's."""
    if any(c in root for c in "*?["):
        files = sorted(fs.glob(root))
        root = posixpath.dirname(root.split("*")[0].split("?")[0].split("[")[0])
    elif fs.isdir(root):
        files = sorted(file for file in fs.find(root) if file.endswith(suffixes))
    else:
        files = [root] if fs.exists(root) else []
        root = posixpath.dirname(root)
    if not files:
        raise FileNotFoundError(f"{root}: no such file, or no {' or '.join(suffixes)} file in it")
    for file in files:
        if not _is_regular(fs, file):
            raise DedupError(f"{file}: not a regular file (a folder, a device or a broken link)")
    return [(posixpath.relpath(file, root or "."), file) for file in files]


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower().removeprefix(".")
