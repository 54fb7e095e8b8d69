"""Read the examples of an evaluation set from the three layouts such sets come in, one at a time.

    folder      PATH/CLASS/*.png, or the images directly in PATH
    webdataset  .tar files of samples that share a key: key.jpg with key.cls, key.txt or key.json
    parquet     a column of encoded images, as bytes or as the {bytes, path} of Hugging Face data sets

Nothing is left out silently: what is no readable example comes out as one with a `failure`. PATH may be any fsspec URL;
for webdataset and parquet it is a file, a folder or a glob. A label may be a list: then its parts have commas between.
"""

import json
import math
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

Kind = Literal["folder", "webdataset", "parquet"]

IMAGE_SUFFIXES = frozenset(["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm"])

# Rows of a parquet file held at a time: images are large.
_ROWS = 32


@dataclass(frozen=True, slots=True)
class Example:
    """One image of an evaluation set, still encoded. `eval_id` is unique in the set and the same on every machine."""

    eval_id: str
    label: str | None
    encoded: bytes
    failure: Literal["", "other_file", "no_image"] = ""


def read_examples(
    kind: str, path: str, *, image_column: str = "image", label_column: str | None = None
) -> Iterator[Example]:
    """Yield the examples in a fixed order.

    `label_column` names the column (parquet) or the json field (webdataset) of the class; "label" if there is one.
    Raises `FileNotFoundError` where nothing is there, `ValueError` where it is not what `kind` says.
    """
    fs, root = fsspec.core.url_to_fs(path)
    if kind == "folder":
        return _read_folder(fs, root)
    if kind == "webdataset":
        return _check_unique(_read_webdataset(fs, root, label_column or "label"), path)
    if kind == "parquet":
        return _read_parquet(fs, root, image_column, label_column)
    raise ValueError(f"kind {kind!r} is unknown: choose one of {', '.join(get_args(Kind))}")


def _check_unique(examples: Iterator[Example], path: str) -> Iterator[Example]:
    """Pass examples on; raise ValueError at a second one of the same name: whose results are whose?"""
    seen = set[str]()
    for example in examples:
        if example.eval_id in seen:
            raise ValueError(f"{path}: two examples are called {example.eval_id!r}: rename one")
        seen.add(example.eval_id)
        yield example


def _label_text(label: Any, names: Mapping[int, str]) -> str | None:
    """Return a label as text, a class's number by its name where there is one; None where it says no class."""
    if isinstance(label, list):
        return ",".join(filter(None, (_label_text(one, names) for one in label))) or None
    if isinstance(label, float):  # whole numbers become that in a column with gaps
        label = None if math.isnan(label) else int(label) if label.is_integer() else label
    if isinstance(label, int):  # True and False, too: 1 and 0
        return names.get(label, str(int(label)))
    return None if label is None else str(label)


def _read_folder(fs: Any, root: str) -> Iterator[Example]:
    if not fs.exists(root):
        raise FileNotFoundError(f"{root}: no such folder")
    if not fs.isdir(root):
        raise ValueError(f"{root}: a file where a folder is needed; kind 'webdataset' reads .tar, 'parquet' .parquet")
    for file in sorted(fs.find(root)):
        name = posixpath.relpath(file, root)
        label = posixpath.basename(posixpath.dirname(name)) or None
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or _suffix(name) not in IMAGE_SUFFIXES:
            yield Example(name, label, b"", "other_file")
        else:
            yield Example(name, label, fs.cat_file(file))


def _read_webdataset(fs: Any, root: str, label_field: str) -> Iterator[Example]:
    for name, file in _files(fs, root, (".tar", ".tar.gz", ".tgz")):
        with fs.open(file, "rb") as stream:
            try:
                for key, members in _samples(stream, "r:gz" if file.endswith("gz") else "r:"):
                    yield _example_of_sample(f"{name.split('.tar')[0]}/{key}", members, label_field)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise ValueError(f"{file}: damaged tar file ({error}); copy it again") from error


def _samples(stream: Any, mode: Literal["r:", "r:gz"]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the key and the members, suffix -> content, of each run of members with one key."""
    key, sample = "", dict[str, bytes]()
    with tarfile.open(fileobj=stream, mode=mode) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # or it would remember every header of the file
            if not member.isfile():
                continue
            folder, base = posixpath.split(member.name)
            stem, _, suffix = base.partition(".")
            if posixpath.join(folder, stem) != key and sample:
                yield key, sample
                sample = {}
            key = posixpath.join(folder, stem)
            sample[suffix.lower()] = tar.extractfile(member).read()  # type: ignore[union-attr]
        _check_end(tar)
    if sample:
        yield key, sample


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise if more follows than the zeros at the end of an archive: tarfile takes a broken header for the end."""
    tar.fileobj.seek(tar.offset)
    while block := tar.fileobj.read(1 << 20):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"unreadable data after byte {tar.offset}")


def _example_of_sample(eval_id: str, members: dict[str, bytes], label_field: str) -> Example:
    images = [content for suffix, content in members.items() if suffix.split(".")[-1] in IMAGE_SUFFIXES]
    label = _label_of_sample(members, label_field)
    return Example(eval_id, label, images[0]) if images else Example(eval_id, label, b"", "no_image")


def _label_of_sample(members: dict[str, bytes], label_field: str) -> str | None:
    if "cls" in members:
        return members["cls"].decode("utf-8", "replace").strip()
    if "json" in members:
        try:
            fields = json.loads(members["json"])
        except ValueError:
            fields = None
        if isinstance(fields, dict) and (text := _label_text(fields.get(label_field), {})) is not None:
            return text
    return members["txt"].decode("utf-8", "replace").strip() if "txt" in members else None


def _read_parquet(fs: Any, root: str, image_column: str, label_column: str | None) -> Iterator[Example]:
    for name, file in _files(fs, root, (".parquet",)):
        with fs.open(file, "rb") as stream:
            try:
                parquet = pq.ParquetFile(stream)
            except pa.ArrowInvalid as error:
                raise ValueError(f"{file}: not a parquet file ({error})") from error
            yield from _read_table(parquet, name.removesuffix(".parquet"), file, image_column, label_column)


def _read_table(
    parquet: pq.ParquetFile, name: str, file: str, image_column: str, label_column: str | None
) -> Iterator[Example]:
    schema = parquet.schema_arrow
    for column in (image_column, label_column):
        if column is not None and column not in schema.names:
            raise ValueError(f"{file}: no column {column!r}; there are {', '.join(schema.names)}")
    label_column = label_column or ("label" if "label" in schema.names else None)
    _check_image_type(schema.field(image_column).type, file, image_column)
    class_names = _class_names(schema, label_column)
    columns = [image_column] if label_column is None else [image_column, label_column]
    row = 0
    for batch in parquet.iter_batches(_ROWS, columns=columns):
        images = batch.column(image_column).to_pylist()
        labels = [None] * len(images) if label_column is None else batch.column(label_column).to_pylist()
        for image, label in zip(images, labels, strict=True):
            encoded = image.get("bytes") if isinstance(image, dict) else image
            text = _label_text(label, class_names)
            yield Example(f"{name}/{row:07d}", text, encoded or b"", "" if encoded else "no_image")
            row += 1


def _check_image_type(kind: pa.DataType, file: str, column: str) -> None:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"{file}: column {column!r} is {kind}; need encoded images, as bytes or {{bytes, path}}")


def _class_names(schema: pa.Schema, label_column: str | None) -> dict[int, str]:
    """Return the names behind class numbers, where the file carries them in Hugging Face's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        feature = features[label_column]
        return dict(enumerate(feature.get("feature", feature)["names"]))  # "feature": of a list of classes
    except (ValueError, KeyError, TypeError, AttributeError):
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
    return [(posixpath.relpath(file, root or "."), file) for file in files]


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower().removeprefix(".")
