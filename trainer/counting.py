"""List shards and count the samples of each, cheaply: from what is written beside them, else from the tars' headers.

In this order: the folder's `manifest.json` or `sizes.json`; img2dataset's `NNNNN_stats.json`; the headers of the tar
itself. A local tar is indexed once; of a remote one the headers are read by ranges, so large members are skipped, and
nothing is stored. `python -m trainer.counting GLOB --write` counts once for all runs.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import fsspec

from pipeline.shards.manifest import read_manifest
from trainer.errors import TrainerError, one_line
from trainer.remote_shards import Listed, expand, filesystem_of
from trainer.shard_cache import ShardCache
from trainer.tar_index import index_tar

log = logging.getLogger(__name__)
MAX_SAMPLES = 2**40
"""Of a shard; a larger announced count is rejected as invalid."""
COUNTED_AT_ONCE = 32
MANY = 500
"""Shards to count at the start of a run above which a hint is logged."""
_HEADER_BLOCK = 1 << 20  # bytes fetched per request; members larger than that are skipped
_ABSENT = (FileNotFoundError, NotADirectoryError, PermissionError)  # or HTTP 403: some stores send it for missing files


@dataclass(frozen=True)
class CountedShard:
    """One tar: its URL or path, how many samples it holds, its size in bytes and SHA-256 where they are known."""

    path: str
    samples: int
    sha256: str | None = None
    size: int | None = None


def count_shards(globs: tuple[str, ...], cache: ShardCache, key: str = "train.shards") -> tuple[CountedShard, ...]:
    """List the shards that match, each once, and count their samples. `key` names the globs in an error.

    Raises:
        TrainerError: a glob matches nothing, no shard holds a sample, or a shard to be counted cannot be read.
    """
    matches_by_glob = {pattern: expand(pattern) for pattern in globs}
    for pattern, matches in matches_by_glob.items():
        if not matches:
            raise TrainerError(f"no shards match {pattern}: build them first, or correct {key}")
    listed = list({shard.path: shard for matches in matches_by_glob.values() for shard in matches}.values())
    announced: dict[str, CountedShard] = {}
    for folder in sorted({shard.path.rpartition("/")[0] for shard in listed}):
        source, shards = _announced_shards(folder)
        if source == "manifest.json":
            _check_none_missing(folder, shards, matches_by_glob)
        announced |= shards
    unknown = [shard for shard in listed if shard.path not in announced]
    announced |= {shard.path: shard for shard in _count_all(unknown, cache)}
    counted = tuple(replace(announced[shard.path], size=shard.size) for shard in listed)
    if not sum(shard.samples for shard in counted):
        raise TrainerError(f"the {len(listed)} shards that match {', '.join(globs)} hold no samples")
    return counted


def _count_all(listed: list[Listed], cache: ShardCache) -> Iterator[CountedShard]:
    if len(listed) > MANY:
        log.warning(
            "counting the samples of %d shards without manifest.json or sizes.json: `wit shards count GLOB --write` "
            "does that once for all runs", len(listed),
        )  # fmt: skip
    with ThreadPoolExecutor(COUNTED_AT_ONCE) as threads:
        yield from threads.map(lambda shard: _count(shard, cache), listed)


def _count(shard: Listed, cache: ShardCache) -> CountedShard:
    for count in (_from_statistics, _from_headers):
        found = count(shard)
        if found is not None:
            return CountedShard(shard.path, found)
    file, index = cache.open(shard.path)  # a local tar, or a store that does not serve ranges
    file.close()
    return CountedShard(shard.path, len(index))


def _from_statistics(shard: Listed) -> int | None:
    """Return what img2dataset says that it wrote: `successes` of `NNNNN_stats.json`; None where it does not."""
    with suppress(Exception):  # absent, JSON of any shape, and any file system's errors: then the tar is counted
        filesystem, path = filesystem_of(f"{shard.path.removesuffix('.tar')}_stats.json")
        count = json.loads(filesystem.cat_file(path))["successes"]  # in one request: `open` sends two
        if type(count) is int and 0 <= count <= MAX_SAMPLES:
            return count
    return None


def _from_headers(shard: Listed) -> int | None:
    """Read the headers of a remote tar by ranges; None if it is local or its store does not serve ranges."""
    if "://" not in shard.path or shard.size is None:
        return None
    filesystem, path = filesystem_of(shard.path)
    try:
        with filesystem.open(path, "rb", block_size=_HEADER_BLOCK, cache_type="readahead") as file:
            return len(index_tar(file, shard.path, shard.size))
    except TrainerError:
        raise
    except Exception:  # each file system raises its client's errors; a copy tells what is wrong
        return None


def _check_none_missing(folder: str, shards: dict[str, CountedShard], matches_by_glob: dict[str, list[Listed]]) -> None:
    """Raise if a glob on this folder would match a tar that the manifest lists but that does not exist."""
    for pattern, matches in matches_by_glob.items():
        if any(match.path.rpartition("/")[0] == folder for match in matches):
            for path in sorted(shards.keys() - {match.path for match in matches}):
                if fnmatchcase(path.rpartition("/")[2], pattern.rpartition("/")[2]):
                    raise TrainerError(
                        f"{folder}/manifest.json lists {path}, which does not exist: copy it, or list the tars to "
                        "train on in train.shards"
                    )


def _announced_shards(folder: str) -> tuple[str, dict[str, CountedShard]]:
    """Return the name of the file that lists a folder's shards, and the shards by path; ("", {}) if there is none.

    Raises:
        TrainerError: it cannot be read, or a count is invalid.
    """
    for name, read in (("manifest.json", _read_manifest), ("sizes.json", _read_sizes)):
        try:
            shards = read(folder)
        except Exception as error:  # JSON of any shape, and any file system's errors
            if isinstance(error, _ABSENT) or getattr(error, "status", None) == 403:
                continue
            reason = one_line(error).removeprefix(f"{folder}/{name}: ")
            raise TrainerError(f"{folder}/{name} cannot be used: {reason}") from error
        for shard in shards:
            if type(shard.samples) is not int or not 0 <= shard.samples <= MAX_SAMPLES:
                raise TrainerError(
                    f"{folder}/{name} cannot be used: {shard.samples!r} is not a number of samples ({shard.path})"
                )
        return name, {shard.path: shard for shard in shards}
    return "", {}


def _read_manifest(folder: str) -> list[CountedShard]:
    return [CountedShard(shard.path, shard.samples, shard.sha256) for shard in read_manifest(folder).shards]


def _read_sizes(folder: str) -> list[CountedShard]:
    filesystem, path = filesystem_of(f"{folder}/sizes.json")
    return [CountedShard(f"{folder}/{name}", count) for name, count in json.loads(filesystem.cat_file(path)).items()]


def write_sizes(globs: tuple[str, ...], cache: ShardCache) -> dict[str, dict[str, int]]:
    """Count the shards, and write `sizes.json` beside them, which open_clip reads too; return the counts by folder.

    Raises:
        TrainerError: as `count_shards` does, or a file cannot be written.
    """
    by_folder: dict[str, dict[str, int]] = {}
    for shard in count_shards(globs, cache):
        folder, _, name = shard.path.rpartition("/")
        by_folder.setdefault(folder, {})[name] = shard.samples
    for folder, sizes in by_folder.items():
        target = f"{folder}/sizes.json"
        try:
            written = json.dumps(sizes, indent=0) + "\n"
            if "://" in folder:  # an object store shows a whole object or none
                with fsspec.open(target, "w") as file:
                    file.write(written)
            else:
                partial = Path(f"{target}.partial")
                partial.write_text(written)
                os.replace(partial, target)
        except Exception as error:  # each file system raises its client's errors
            raise TrainerError(f"cannot write {target}: {one_line(error)}") from error
    return by_folder


def main(arguments: list[str] | None = None) -> int:
    """Run `wit shards count`; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="wit shards count",
        description="Count the samples of tars, and with --write keep the counts in a sizes.json beside them, so that "
        "no training run has to count again; open_clip reads it too.",
    )
    parser.add_argument("globs", nargs="+", metavar="GLOB", help="tars: paths or URLs")
    parser.add_argument("--write", action="store_true", help="write sizes.json")
    parser.add_argument("--cache", type=Path, default=Path(".wit-cache"), help="folder of indexes of local tars")
    options = parser.parse_args(arguments)
    cache, globs = ShardCache(options.cache, 2**40), tuple(options.globs)
    try:
        counted = (
            [
                CountedShard(f"{folder}/{name}", count)
                for folder, sizes in write_sizes(globs, cache).items()
                for name, count in sizes.items()
            ]
            if options.write
            else list(count_shards(globs, cache))
        )
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    for shard in counted:
        print(f"{shard.samples:>9,}  {shard.path}")
    print(f"{sum(shard.samples for shard in counted):>9,}  in {len(counted)} shards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
