"""Finding, counting and reading shards: ours, others', remote ones, and damaged ones."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from scene_shards import scene_key, write_scene_shards

from trainer.errors import TrainerError
from trainer.shards import ShardCache, ShardSet, find_shards

DATA = Path(os.environ.get("WIT_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _cache(folder: Path, max_bytes: int = 2**30) -> ShardCache:
    return ShardCache(folder / "cache", max_bytes)


def _one_line(error: pytest.ExceptionInfo[TrainerError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_samples_are_those_tarfile_finds(scenes: Path, tmp_path: Path):
    found = find_shards((f"{scenes}/shards/*.tar",), _cache(tmp_path))
    assert found.counts.tolist() == [60, 13, 47, 50, 30]
    number = 0
    for shard, count in enumerate(found.counts):
        reader = found.reader(shard)
        with tarfile.open(found.shards[shard].path) as tar:
            for index in range(count):
                sample, key = reader.read(index, with_json=True), scene_key(number)
                assert reader.key(index) == key
                for suffix, content in (("jpg", sample.image), ("txt", sample.text), ("json", sample.json)):
                    member = tar.extractfile(f"{key}.{suffix}")
                    assert member is not None
                    assert member.read() == content
                number += 1


def test_a_third_partys_shard_is_counted_and_read(tmp_path: Path):
    path = DATA / "shards" / "cc12m_32.tar"
    if not path.exists():
        pytest.skip("needs the shared data: set WIT_SHARED_DATA")
    found = find_shards((str(path),), _cache(tmp_path))
    assert found.counts.tolist() == [32]
    sample = found.reader(0).read(0, with_json=True)
    assert json.loads(sample.json or b"")["caption"] == (sample.text or b"").decode()
    assert (sample.image or b"")[:2] == b"\xff\xd8"


def test_any_member_order_long_names_and_folders_are_understood(tmp_path: Path):
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for key, suffixes in (("dir/" + "k" * 150, ("txt", "JPEG")), ("dir/b", ("png", "cls", "txt")), ("c", ("txt",))):
            for suffix in suffixes:
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime = 3, 1.5  # type: ignore[assignment]
                tar.addfile(info, io.BytesIO(suffix[:3].encode()))
    reader = find_shards((str(path),), _cache(tmp_path)).reader(0)
    read = [reader.read(number, with_json=False) for number in range(len(reader))]
    assert [(sample.image, sample.text) for sample in read] == [(b"JPE", b"txt"), (b"png", b"txt"), (None, b"txt")]


def test_sizes_json_is_believed_until_a_shard_is_opened(scenes: Path, tmp_path: Path):
    folder = write_scene_shards(tmp_path / "shards", (5, 4))
    (folder / "manifest.json").unlink()
    (folder / "sizes.json").write_text('{"00000.tar": 5, "00001.tar": 9}')
    found = find_shards((f"{folder}/*.tar",), _cache(tmp_path))
    assert found.counts.tolist() == [5, 9]
    with pytest.raises(TrainerError) as caught:
        found.reader(1)
    assert "holds 4 samples where 9 are announced" in _one_line(caught)


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("keep", [0.5, 0.503])
def test_a_shard_cut_in_half_is_one_clear_line(tmp_path: Path, announced: bool, keep: float):
    folder = write_scene_shards(tmp_path / "shards", (20,))
    if not announced:
        (folder / "manifest.json").unlink()
        (folder / "sizes.json").unlink()
    tar = folder / "00000.tar"
    os.truncate(tar, int(tar.stat().st_size * keep))
    with pytest.raises(TrainerError) as caught:
        find_shards((f"{folder}/*.tar",), _cache(tmp_path)).reader(0)
    assert f"shard {tar}" in _one_line(caught)


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100])
def test_what_is_not_a_tar_is_one_clear_line(tmp_path: Path, content: bytes):
    path = tmp_path / "00000.tar"
    path.write_bytes(content)
    with pytest.raises(TrainerError, match=r"00000\.tar"):
        find_shards((str(path),), _cache(tmp_path))


def test_no_shards_is_one_clear_line(tmp_path: Path):
    for glob in (f"{tmp_path}/*.tar", f"{tmp_path}/00000.tar"):
        with pytest.raises(TrainerError) as caught:
            find_shards((glob,), _cache(tmp_path))
        assert "no shards match" in _one_line(caught)


def test_remote_shards_are_kept_in_a_bounded_folder(scenes: Path, tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for file in sorted((scenes / "shards").iterdir()):
        memory.pipe_file(f"/bucket/{file.name}", file.read_bytes())
    largest = max(file.stat().st_size for file in (scenes / "shards").glob("*.tar"))
    cache = _cache(tmp_path, max_bytes=2 * largest)
    found = find_shards(("memory://bucket/*.tar",), cache)
    local = find_shards((f"{scenes}/shards/*.tar",), cache)
    assert found.counts.tolist() == local.counts.tolist()
    assert found.fingerprint == local.fingerprint
    for _ in range(2):
        for shard in range(len(found.counts)):
            assert found.reader(shard).read(7, with_json=True) == local.reader(shard).read(7, with_json=True)
            kept = sum(copy.stat().st_size for copy in (tmp_path / "cache" / "shards").glob("*.tar"))
            assert kept <= 2 * largest
        found = ShardSet(found.shards, cache)
    assert not list((tmp_path / "cache").rglob("*.part"))
