"""Samples are counted from what lies beside the tars, else from their headers, by ranges; nothing is downloaded."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from support.scene_shards import write_scene_shards

from trainer import counting
from trainer.counting import count_shards
from trainer.errors import TrainerError
from trainer.remote_shards import version_of
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards


class _RangeFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        self.fs.fetched += min(end, self.size) - start
        return bytes(self.fs.files[self.path][start:end])


class _RangeStore(AbstractFileSystem):
    """A store that counts the bytes that it serves."""

    protocol = "ranges"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}
    fetched = 0

    def _open(self, path: str, mode: str = "rb", **keys: Any) -> _RangeFile:
        if path not in self.files:
            raise FileNotFoundError(path)
        return _RangeFile(
            self, path, mode, size=len(self.files[path]), **{k: keys[k] for k in keys if k != "compression"}
        )

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = [{"name": name, "size": len(content), "type": "file"} for name, content in self.files.items()]
        return found if detail else [one["name"] for one in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path not in self.files:
            raise FileNotFoundError(path)
        return {"name": path, "size": len(self.files[path]), "type": "file"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> type[_RangeStore]:
    fsspec.register_implementation("ranges", _RangeStore, clobber=True)
    monkeypatch.setattr(_RangeStore, "files", {})
    return _RangeStore


def _tar(samples: int, image_bytes: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(samples):
            for suffix, size in (("jpg", image_bytes), ("txt", 20)):
                info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                info.size = size
                tar.addfile(info, io.BytesIO(bytes(size)))
    return stream.getvalue()


def test_what_img2dataset_wrote_is_believed_and_no_tar_is_read(store: Any, tmp_path: Path):
    for number, count in enumerate((120, 0, 7)):
        store.files[f"set/{number:05d}.tar"] = b"not read"
        store.files[f"set/{number:05d}_stats.json"] = json.dumps({"count": 200, "successes": count}).encode()
    shards = count_shards(("ranges://set/*.tar",), ShardCache(tmp_path, 2**30))
    assert [shard.samples for shard in shards] == [120, 0, 7]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stats", [b"", b"[1]", b'{"successes": "9"}', b'{"successes": -1}', b'{"successes": 1e400}'])
def test_statistics_that_say_nothing_are_passed_over(tmp_path: Path, stats: bytes):
    write_scene_shards(tmp_path / "set", (9,))
    for name in ("manifest.json", "sizes.json"):
        (tmp_path / "set" / name).unlink()
    (tmp_path / "set" / "00000_stats.json").write_bytes(stats)
    assert [shard.samples for shard in count_shards((f"{tmp_path}/set/*.tar",), ShardCache(tmp_path, 2**30))] == [9]


def test_of_a_remote_tar_large_members_are_skipped(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store.files["set/00000.tar"] = _tar(6, 8 << 20)
    read: list[int] = []
    fetch = _RangeFile._fetch_range
    monkeypatch.setattr(
        _RangeFile, "_fetch_range", lambda self, start, end: (read.append(end - start), fetch(self, start, end))[1]
    )
    (shard,) = count_shards(("ranges://set/*.tar",), ShardCache(tmp_path, 2**30))
    assert (shard.samples, shard.size) == (6, len(store.files["set/00000.tar"]))
    assert sum(read) < shard.size / 4
    assert not list(tmp_path.iterdir())


def test_a_remote_tar_that_is_cut_is_one_line(store: Any, tmp_path: Path):
    store.files["set/00000.tar"] = _tar(6, 8 << 10)[:30_000]
    with pytest.raises(
        TrainerError, match=r"shard ranges://set/00000\.tar (ends in the middle|was truncated|is damaged)"
    ):
        count_shards(("ranges://set/*.tar",), ShardCache(tmp_path, 2**30))


def test_counts_are_written_once_for_all_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_scene_shards(tmp_path / "set", (9, 4))
    for name in ("manifest.json", "sizes.json"):
        (tmp_path / "set" / name).unlink()
    glob = f"{tmp_path}/set/*.tar"
    assert counting.main([glob, "--cache", str(tmp_path / "cache")]) == 0
    assert "13  in 2 shards" in capsys.readouterr().out
    assert not (tmp_path / "set" / "sizes.json").exists()
    assert counting.main([glob, "--cache", str(tmp_path / "cache"), "--write"]) == 0
    assert json.loads((tmp_path / "set" / "sizes.json").read_text()) == {"00000.tar": 9, "00001.tar": 4}
    assert counting.main([f"{tmp_path}/none/*.tar"]) == 1
    assert "no shards match" in capsys.readouterr().err


def test_a_local_tar_is_indexed_once_on_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from trainer import shard_cache

    write_scene_shards(tmp_path / "set", (9,))
    indexed: list[str] = []
    index_tar = shard_cache.index_tar
    monkeypatch.setattr(shard_cache, "index_tar", lambda file, path: (indexed.append(path), index_tar(file, path))[1])
    for _ in range(3):
        find_shards((f"{tmp_path}/set/*.tar",), ShardCache(tmp_path / "cache", 2**30)).reader(0)
    assert len(indexed) == 1


def test_the_fingerprint_tells_contents_apart(tmp_path: Path):
    def fingerprint(**keys: Any) -> str:
        folder = write_scene_shards(tmp_path / "set", (9,), **keys)
        return find_shards((f"{folder}/*.tar",), ShardCache(tmp_path / "cache", 2**30)).fingerprint

    plain = fingerprint()
    assert fingerprint() == plain
    assert fingerprint(replace={"txt": {3: b"x" * 60_000}}) != plain
    assert version_of(f"file://{tmp_path}/set/00000.tar").size
