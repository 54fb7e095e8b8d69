"""Read the marker files of a step, of which there may be a million.

A pack beside them, written by a build that had to read many, has their contents together with the version of each file:
the next build lists the folder and reads what has changed since. The files alone say what is done.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.engine.workspace import FileVersion, Workspace
from pipeline.errors import DamagedFileError

PACKED_FROM = 1_000
"""Marker files that are read one by one before a pack of them is written."""

PACK = "markers.packed"
_PACKED = pa.schema([("name", pa.string()), ("bytes", pa.int64()), ("tag", pa.string()), ("content", pa.binary())])


@dataclass(frozen=True)
class MarkerFiles:
    """Name -> content of marker files, and -> version; `read` are those that no pack had."""

    contents: dict[str, bytes]
    versions: Mapping[str, FileVersion]
    read: frozenset[str]


def read_marker_files(workspace: Workspace, folder: str) -> MarkerFiles:
    """Return all marker files under a folder."""
    listed = workspace.versions(folder)
    versions = {name: version for name, version in listed.items() if name.endswith(".json")}
    contents: dict[str, bytes] = {}
    for pack in (name for name in listed if name.endswith(f"/{PACK}")):
        for name, version, content in _read_pack(workspace, pack):
            if version.tag and versions.get(name) == version:
                contents[name] = content
    others = sorted(versions.keys() - contents.keys())
    contents.update(zip(others, workspace.read_files(others), strict=True))
    return MarkerFiles({name: contents[name] for name in versions}, versions, frozenset(others))


def write_pack(workspace: Workspace, folder: str, files: MarkerFiles) -> None:
    """Write the pack of a folder."""
    names = list(files.contents)
    columns = [
        pa.array(names),
        pa.array([files.versions[name].bytes for name in names], pa.int64()),
        pa.array([files.versions[name].tag for name in names]),
        pa.array(files.contents.values(), pa.binary()),
    ]
    with workspace.create(f"{folder}/{PACK}") as out:
        pq.write_table(pa.table(columns, _PACKED), out, compression="zstd", write_page_checksum=True)


def _read_pack(workspace: Workspace, pack: str) -> Iterator[tuple[str, FileVersion, bytes]]:
    try:
        rows = workspace.read_table(pack, _PACKED.names)
    except (DamagedFileError, FileNotFoundError):  # the files themselves are read
        return
    columns = (rows[name].to_pylist() for name in _PACKED.names)
    for name, size, tag, content in zip(*columns, strict=True):
        yield name, FileVersion(size, tag), content
