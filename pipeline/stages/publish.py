"""`wit publish`: a finished set on the Hugging Face Hub, or in any folder or store.

What is published is shards/: tars, tables and statistics as the manifest lists them, croissant.json, and the data card
as README.md, which begins with what the Hub's viewer reads. Files that are there with the right size and SHA-256 are
not sent again, so a publication resumes; each is compared after it was sent; the manifest comes last, when all others
are known to be there.
"""

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import fsspec

from pipeline.engine.progress import Progress
from pipeline.engine.workspace import FileFacts, Workspace
from pipeline.errors import ConfigError, NetworkError, UserError, is_rate_limit, one_line
from pipeline.private_folder import scratch_folder
from pipeline.shards.manifest import Manifest, read_manifest

_FILES_PER_COMMIT = 20
_COPY_BYTES = 1 << 20
_LAST = ("sizes.json", "manifest.json")
_SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")),
    *((10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)


@dataclass(frozen=True)
class GitBlob:
    """What git knows of a small file: the SHA-1 of a header and its bytes."""

    sha1: str

    @classmethod
    def of(cls, content: bytes) -> "GitBlob":
        return cls(hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest())


class Destination(Protocol):
    """Where a set is published."""

    def files(self, names: Collection[str] | None = None) -> Mapping[str, FileFacts | GitBlob]:
        """Return name -> what is known of the files that are there; with `names`, of these at least."""

    def send(self, files: Mapping[str, Path]) -> None:
        """Write some files, together if the place can."""


@dataclass(frozen=True)
class Published:
    """How many files were sent, how many were there before, the bytes sent, and files of other sets there."""

    sent: int
    present: int
    bytes: int
    strays: tuple[str, ...] = ()


def publish(workspace: Workspace, url: str, progress: Progress) -> Published:
    """Publish the finished set of a workspace at `url`: hf://datasets/OWNER/NAME, or any path or fsspec URL.

    Raises:
        UserError: there is no finished set, or a file differs after it was sent.
        DamagedFileError: a file of the set is not what was written.
        NetworkError: the place limits the rate of requests.
    """
    try:
        manifest = read_manifest(f"{workspace.root}/shards")
    except FileNotFoundError:
        raise UserError(f"{workspace.root}: no finished dataset; run `wit build` first") from None
    destination = open_destination(url)
    try:
        return _publish(workspace, manifest, destination, progress)
    except UserError:
        raise
    except Exception as error:  # any error of a store or the Hub
        line = _with_cause(error)
        if is_rate_limit(line) or re.search(r"\b429\b", line):  # as a word: a SHA-256 may contain the digits
            raise NetworkError(f"{url}: {line}; run again later: what was sent stays sent") from error
        raise UserError(f"{url}: {line}; run again to resume") from error


def _with_cause(error: Exception) -> str:
    """Return the message of an error and that of its first cause: the Hub's client names only the file."""
    first: BaseException = error
    while first.__cause__ is not None:
        first = first.__cause__
    return one_line(str(error) if first is error else f"{str(error).rstrip('.')}: {first or type(first).__name__}")


def _publish(workspace: Workspace, manifest: Manifest, destination: Destination, progress: Progress) -> Published:
    there = destination.files()
    extra = {"README.md": _card(workspace, manifest), **_optional(workspace, ["croissant.json", *_LAST])}
    wanted = dict(manifest.files) | {name: _facts(content) for name, content in extra.items()}
    missing = [name for name, facts in wanted.items() if not _is_there(workspace, name, facts, extra, there.get(name))]
    missing.sort(key=lambda name: (name in extra, name in _LAST, name == "manifest.json", name))
    body = [name for name in missing if name not in _LAST]
    # The manifest comes when all else is known to be there.
    for names in (body, *([name] for name in missing[len(body) :])):
        for start in range(0, len(names), _FILES_PER_COMMIT):
            _send(workspace, destination, names[start : start + _FILES_PER_COMMIT], wanted, extra, progress)
        there_now = destination.files(names) if names else {}
        for name in names:
            if not _is_there(workspace, name, wanted[name], extra, there_now.get(name)):
                raise UserError(f"{name} is missing there, or differs from what was sent; run again")
    strays = tuple(sorted(name for name in there.keys() - wanted.keys() if name.endswith((".tar", ".parquet"))))
    sent_bytes = sum(wanted[name].bytes for name in missing)
    return Published(len(missing), len(wanted) - len(missing), sent_bytes, strays)


def _send(
    workspace: Workspace,
    destination: Destination,
    names: Sequence[str],
    wanted: Mapping[str, FileFacts],
    extra: Mapping[str, bytes],
    progress: Progress,
) -> None:
    """Send some files together."""
    with scratch_folder("publish") as scratch:
        destination.send({n: _local(workspace, n, extra.get(n), wanted[n], Path(scratch)) for n in names})
    progress.say(f"sent {', '.join(names)}")


def _is_there(
    workspace: Workspace,
    name: str,
    facts: FileFacts,
    extra: Mapping[str, bytes],
    found: FileFacts | GitBlob | None,
) -> bool:
    if isinstance(found, GitBlob):
        return found == GitBlob.of(extra[name] if name in extra else workspace.read_bytes(f"shards/{name}"))
    return found == facts


def _facts(content: bytes) -> FileFacts:
    return FileFacts(len(content), hashlib.sha256(content).hexdigest())


def _optional(workspace: Workspace, names: Iterable[str]) -> dict[str, bytes]:
    return {name: workspace.read_bytes(f"shards/{name}") for name in names if workspace.exists(f"shards/{name}")}


def _local(workspace: Workspace, name: str, content: bytes | None, facts: FileFacts, scratch: Path) -> Path:
    """Return a local file to send: a file of a local workspace itself, after it was compared, or a copy."""
    copy = scratch / name
    if content is not None:
        copy.write_bytes(content)
        return copy
    with workspace.open_checked(f"shards/{name}", facts.sha256) as source, copy.open("wb") as out:
        while block := source.read(_COPY_BYTES):
            if not workspace.is_local:
                out.write(block)
        source.check()
    return Path(workspace.path(f"shards/{name}")) if workspace.is_local else copy


def _card(workspace: Workspace, manifest: Manifest) -> bytes:
    """Return the data card with the metadata that the Hub reads: splits for its viewer, and the size."""
    size = next((name for most, name in _SIZES if manifest.samples < most), "n>1B")
    card = workspace.read_bytes("report/data_card.md").decode() if workspace.exists("report/data_card.md") else ""
    head = [
        "---",
        "license: other",
        "task_categories:",
        "- zero-shot-image-classification",
        "- image-to-text",
        "tags:",
        "- webdataset",
        "size_categories:",
        f"- {size}",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        '    path: "*.tar"',
        "- config_name: pairs",
        "  data_files:",
        "  - split: train",
        '    path: "*.parquet"',
        "---",
        "",
    ]
    return ("\n".join(head) + "\n" + card).encode()


def open_destination(url: str) -> Destination:
    """Return the place that a URL or path names.

    Raises:
        ConfigError: it names none, or a package is missing.
    """
    if url.startswith("hf://"):
        return HubDestination.open(url)
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{url}: {one_line(error)}") from None
    except OSError as error:  # those of FTP and SSH connect at once
        raise NetworkError(f"{url}: cannot be opened ({one_line(error)})") from error
    return FolderDestination(fs, root.rstrip("/"))


@dataclass(frozen=True)
class FolderDestination:
    """A folder of any file system or store."""

    fs: fsspec.AbstractFileSystem
    root: str

    def files(self, names: Collection[str] | None = None) -> Mapping[str, FileFacts | GitBlob]:
        """Read the files that are there: only so are they known to be whole."""
        self.fs.invalidate_cache()
        if not self.fs.exists(self.root):
            return {}
        found = self.fs.find(self.root, maxdepth=1, detail=True)
        there = {path.rsplit("/", 1)[1]: path for path in found}
        return {name: self._facts(path) for name, path in there.items() if names is None or name in names}

    def _facts(self, path: str) -> FileFacts:
        digest, size = hashlib.sha256(), 0
        with self.fs.open(path, "rb") as file:
            while block := file.read(_COPY_BYTES):
                digest.update(block)
                size += len(block)
        return FileFacts(size, digest.hexdigest())

    def send(self, files: Mapping[str, Path]) -> None:
        self.fs.makedirs(self.root, exist_ok=True)
        for name, path in files.items():
            self.fs.put_file(str(path), f"{self.root}/{name}")


@dataclass(frozen=True)
class HubDestination:
    """A dataset repository of the Hugging Face Hub; `api` is a huggingface_hub.HfApi."""

    api: Any
    repository: str

    @classmethod
    def open(cls, url: str) -> "HubDestination":
        parts = url.removeprefix("hf://").split("/")
        if len(parts) != 3 or parts[0] != "datasets" or not all(parts):
            raise ConfigError(f"{url}: must be hf://datasets/OWNER/NAME")
        try:
            import huggingface_hub.utils
        except ModuleNotFoundError:
            raise ConfigError(
                f"{url} needs huggingface-hub: run pip install '.[hub]' in the project's folder"
            ) from None
        cast(Any, huggingface_hub.utils).disable_progress_bars()  # its own, one for each file
        return cls(huggingface_hub.HfApi(), "/".join(parts[1:]))

    def files(self, names: Collection[str] | None = None) -> Mapping[str, FileFacts | GitBlob]:
        """Return what the Hub knows: the SHA-256 of large files, git's hash of small ones."""
        self.api.create_repo(self.repository, repo_type="dataset", private=True, exist_ok=True)
        tree = self.api.list_repo_tree(self.repository, repo_type="dataset")
        found: dict[str, FileFacts | GitBlob] = {}
        for entry in tree:
            lfs = getattr(entry, "lfs", None)
            if lfs is not None:
                found[entry.path] = FileFacts(lfs.size, lfs.sha256)
            elif (blob := getattr(entry, "blob_id", None)) is not None:  # a folder has none
                found[entry.path] = GitBlob(blob)
        return found

    def send(self, files: Mapping[str, Path]) -> None:
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(path)) for name, path in files.items()]
        message = f"Add {next(iter(files))}" + (f" and {len(files) - 1} more files" if len(files) > 1 else "")
        self.api.create_commit(
            self.repository, operations=cast(Any, operations), commit_message=message, repo_type="dataset"
        )
