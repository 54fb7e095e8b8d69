"""Find out how the images under a path are stored, so that nobody has to say it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from dedup.errors import DedupError
from dedup.eval_sets.read import (
    IMAGE_PAGES,
    IMAGE_SUFFIXES,
    TAR_SUFFIXES,
    Example,
    first_line,
    holds_images,
    read_examples,
)
from dedup.eval_sets.registry import Kind
from queries.parquet_pages import GuardedParquet

_CALLED: dict[Kind, str] = {"webdataset": ".tar files", "parquet": ".parquet files of images", "folder": "image files"}


@dataclass(frozen=True)
class Source:
    """A set of images: a folder, WebDataset tars or Parquet files; see `read_examples`."""

    path: Path
    kind: Kind
    image_column: str = "image"

    @classmethod
    def of(cls, path: Path, image_column: str | None = None) -> Self:
        """Detect the layout of the files under a path.

        `image_column` names the column of encoded images in Parquet files; default: "image", or the first one that
        has them in the form of Hugging Face's datasets.

        Raises:
            DedupError: the path does not exist, holds no known layout, or more than one.
        """
        if not path.exists():
            raise DedupError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
        tables = [file for file in files if file.name.endswith(".parquet")]
        column = image_column or next(filter(None, map(_image_column, tables)), None)
        counts: dict[Kind, int] = {
            "webdataset": sum(file.name.endswith(TAR_SUFFIXES) for file in files),
            "parquet": len(tables) if column else 0,  # tables without images describe other files
            "folder": sum(_is_image(file, path) for file in files) if path.is_dir() else 0,
        }
        found = [kind for kind, count in counts.items() if count]
        if not found:
            raise DedupError(f"{path}: {_nothing(path, tables)}")
        if len(found) > 1:
            held = " and ".join(f"{_CALLED[kind]} ({counts[kind]:,})" for kind in found)
            raise DedupError(f"{path}: holds {held}: give the path of one of these layouts")
        return cls(path, found[0], column or "image")

    def examples(self) -> Iterator[Example]:
        """Yield the images, still encoded, in a fixed order.

        Raises:
            FileNotFoundError, DedupError: one line.
        """
        return read_examples(self.kind, str(self.path), image_column=self.image_column)


def _nothing(path: Path, tables: list[Path]) -> str:
    if tables:
        return f"no column of {tables[0].name} holds encoded images; name it by --image-column if there is one"
    if path.is_file():
        return "need a folder of images, or a .tar or .parquet file"
    return "found no images, .tar files or .parquet files"


def _is_image(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return not hidden and file.suffix.lower().removeprefix(".") in IMAGE_SUFFIXES


def _image_column(file: Path) -> str | None:
    """Return the column of a Parquet file that holds encoded images; None without one."""
    try:
        with file.open("rb") as stream:
            schema = GuardedParquet(stream, IMAGE_PAGES).schema
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DedupError(f"{file}: not a parquet file ({first_line(error)})") from error
    if "image" in schema.names and holds_images(schema.field("image").type):
        return "image"
    return next((field.name for field in schema if pa.types.is_struct(field.type) and holds_images(field.type)), None)
