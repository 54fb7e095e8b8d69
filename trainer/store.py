"""The output of a run on a store (`train.output = "s3://bucket/run"`): each machine works on a local copy.

What counts is on the store: a resumed run reads its checkpoints there, whatever is on the machine. A checkpoint is
there once its last object is: the file, or `.metadata` of a folder. It is uploaded beside the steps.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from trainer import checkpoint
from trainer.distributed import WAIT_TIMEOUT, World
from trainer.errors import PeerError, TrainerError, one_line
from trainer.remote_shards import filesystem_of, make_folder
from trainer.store_claim import StoreClaim

FILES_AT_ONCE = 8
_RECORDS = ("metrics.jsonl", "wandb_id", "checkpoints/best.json")
"""What a run resumes beside its checkpoint."""
_LAST = ".metadata"


class Store:
    """A run's folder on a store. Every process calls every method, unless it says otherwise."""

    def __init__(self, claim: StoreClaim, folder: Path, world: World) -> None:
        self.url, self._claim, self._folder, self._world = claim.url, claim, folder, world
        self._filesystem, self._root = filesystem_of(self.url, "train.output")
        # Its thread must not share a group with the steps, whose operations would be mixed up with its own.
        group = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT) if world.size > 1 else None
        self._peers = replace(world, waiting=group)
        self._thread = ThreadPoolExecutor(1)
        self._upload: Future[None] | None = None
        self._uploaded: dict[str, tuple[int, int]] = {}  # name -> size and time of the file
        world.in_first_of_machine(self._clear)

    def _clear(self) -> None:
        """Remove what an earlier run has left on this machine, and fetch the records."""
        present = self._sizes("")
        try:
            for name in ("checkpoints", "model", "model-ema", "tensorboard", "profile"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
            for name in _RECORDS:
                (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise TrainerError(f"cannot write to {self._folder}: {one_line(error)}; set train.cache") from error
        self._fetch([name for name in _RECORDS if name in present])

    def checkpoints(self) -> list[str]:
        """Return the names of the complete checkpoints, oldest first."""
        return self._world.from_first(self._names)

    def _names(self) -> list[str]:
        found = {name.partition("/")[::2] for name in self._sizes("checkpoints/")}
        complete = {name for name, file in found if file in ("", _LAST)}
        return sorted(name for name in complete if checkpoint.is_checkpoint_name(Path(name)))

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return name -> bytes of the files in a folder ("" or "NAME/"), whose names are relative to it."""
        try:
            self._filesystem.invalidate_cache()
            base = f"{self._root}/{folder}"
            found = self._filesystem.find(base.rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each file system raises its client's errors
            raise TrainerError(f"cannot list {self.url}: {one_line(error)}") from error
        return {path[len(base) :]: info["size"] for path, info in found.items() if path.startswith(base)}

    def fetch(self, name: str) -> None:
        """Copy a checkpoint to each machine.

        Raises:
            TrainerError: it cannot be read in full, or the copy cannot be written.
        """
        self._world.in_first_of_machine(lambda: self._fetch(self._files_of(f"checkpoints/{name}")))

    def _files_of(self, name: str) -> list[str]:
        """Return the files of a checkpoint, that which makes it complete last."""
        files = [f"{name}/{file}" for file in self._sizes(f"{name}/")] or [name]
        return sorted(files, key=lambda file: file.endswith(_LAST))

    def _fetch(self, names: list[str]) -> None:
        download(self.url, names, self._folder)

    def start(self, path: Path, written: Callable[[], None] | None, stale: Callable[[list[Path]], list[Path]]) -> None:
        """Upload a checkpoint and the records while the caller goes on, once `written` returns; then delete stale ones.

        Each process uploads what it has written: of a file the first all, of a folder its own part.
        """
        name = f"checkpoints/{path.name}"

        def prepare() -> None:
            self._claim.check()
            self._remove(name)  # parts of an attempt that was interrupted

        self._world.in_first(prepare)

        def upload() -> None:
            failure = None
            try:
                if written is not None:
                    written()
                if self._world.is_first:
                    self._put_records()  # first, so that a checkpoint never lacks the metrics before it
                self._put(_own_part(path, self._world.rank))
            except TrainerError as error:
                failure = error
            if any(self._peers.any(failure is not None)):
                raise failure or PeerError()
            self._peers.in_first(lambda: self._publish(path, stale))
            self._peers.in_first_of_machine(lambda: _keep_only(path))

        self._upload = self._thread.submit(upload)

    def _publish(self, path: Path, stale: Callable[[list[Path]], list[Path]]) -> None:
        self._claim.check()
        if path.is_dir():
            self._put([path / "about.pt"])
            self._put([path / _LAST])
        for old in stale([path.parent / name for name in self._names()]):
            self._remove(f"checkpoints/{old.name}")

    def wait(self) -> None:
        """Wait until the upload is complete.

        Raises:
            TrainerError: it failed.
        """
        if self._upload is None:
            return
        upload, self._upload = self._upload, None
        try:
            upload.result()
        except RuntimeError as error:  # of gloo: another process has ended
            raise PeerError from error

    @contextmanager
    def kept(self) -> Iterator[None]:
        """At the end upload what the context has written beside checkpoints: models, curves, a profile.

        Where it fails, only complete the checkpoint that is being uploaded.
        """
        try:
            yield
        except BaseException:
            with suppress(TrainerError):
                self.wait()
            raise
        self.wait()
        self._world.in_first(self._claim.check)
        self._world.in_first(self._put_records)

    def _put_records(self) -> None:
        folders = ("model", "model-ema", "tensorboard", "profile")
        files = [self._folder / name for name in _RECORDS]
        files += [file for name in folders for file in sorted((self._folder / name).rglob("*"))]
        self._put([file for file in files if file.is_file() and file.suffix != ".partial"])

    def _put(self, files: Iterable[Path]) -> None:
        """Upload files that have changed since they were uploaded."""
        with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
            list(threads.map(self._put_one, files))

    def _put_one(self, file: Path) -> None:
        name = file.relative_to(self._folder).as_posix()
        target = f"{self._root}/{name}"
        try:
            state = file.stat()
            version = state.st_size, state.st_mtime_ns
            if self._uploaded.get(name) == version:
                return
            make_folder(self._filesystem, target)
            self._filesystem.put_file(str(file), target)
        except Exception as error:  # as above
            raise TrainerError(
                f"cannot write {self.url}/{name}: {one_line(error)}; {file} is the local copy: copy it there, "
                "or run again to resume from the last checkpoint on the store"
            ) from error
        self._uploaded[name] = version

    def _remove(self, name: str) -> None:
        target = f"{self._root}/{name}"
        try:
            if self._filesystem.exists(target):
                last = f"{target}/{_LAST}"
                if self._filesystem.exists(last):  # what is left of an interrupted deletion is no checkpoint
                    self._filesystem.rm_file(last)
                self._filesystem.rm(target, recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:  # as above
            raise TrainerError(f"cannot delete {self.url}/{name}: {one_line(error)}") from error
        finally:
            self._uploaded = {key: value for key, value in self._uploaded.items() if not key.startswith(name)}


def _own_part(path: Path, rank: int) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob(f"__{rank}_*"))
    return [path] if rank == 0 else []


def _keep_only(path: Path) -> None:
    """Delete the other checkpoints of this machine, which are on the store."""
    for other in path.parent.glob("step-*"):
        if other.name != path.name:
            checkpoint.delete(other)


def download(url: str, names: list[str], folder: Path) -> None:
    """Copy files of a folder on a store to `folder`, the last one when the others are complete.

    Raises:
        TrainerError: one cannot be read in full, or the copy cannot be written.
    """
    filesystem, root = filesystem_of(url, "the URL")

    def copy(name: str) -> None:
        target = folder / name
        partial = target.with_name(f"{target.name}.partial")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(f"{root}/{name}", str(partial))
            partial.replace(target)
        except Exception as error:  # as above
            raise TrainerError(f"cannot copy {url}/{name} to {folder}: {one_line(error)}") from error

    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        list(threads.map(copy, names[:-1]))
    for name in names[-1:]:
        copy(name)


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Return a path of a file or folder on this machine: of one on a store a copy, which is deleted at the end.

    Raises:
        TrainerError: it cannot be read.
    """
    if "://" not in path:
        yield path
        return
    url, _, name = path.rstrip("/").rpartition("/")
    filesystem, root = filesystem_of(path.rstrip("/"), "the URL")
    try:
        found = filesystem.find(root)
    except Exception as error:  # as above
        raise TrainerError(f"cannot read {path}: {one_line(error)}") from error
    files = [f"{name}{file[len(root) :]}" for file in found]
    if not files:
        raise TrainerError(f"{path} does not exist")
    with tempfile.TemporaryDirectory() as folder:
        download(url, files, Path(folder))
        try:
            yield f"{folder}/{name}"
        except TrainerError as error:  # name what the user has given
            raise TrainerError(str(error).replace(folder, url)) from error
