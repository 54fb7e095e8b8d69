"""Finding, counting and reading shards: ours, others', remote ones, and damaged ones."""

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
from support.scene_shards import scene_key, write_scene_shards
from support.shared_data import SHARED as DATA

from trainer.errors import TrainerError
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards


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
    assert "holds 4 samples, but 9 are announced" in _one_line(caught)


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


def test_every_glob_must_match_tars(scenes: Path, tmp_path: Path):
    good = f"{scenes}/shards/*.tar"
    with pytest.raises(TrainerError) as caught:
        find_shards((good, f"{tmp_path}/typo/*.tar"), _cache(tmp_path), "train.validation")
    assert _one_line(caught) == f"no shards match {tmp_path}/typo/*.tar: build them first, or correct train.validation"
    with pytest.raises(TrainerError) as caught:
        find_shards((good, f"{scenes}/shards"), _cache(tmp_path))
    assert _one_line(caught) == f"{scenes}/shards is a folder: write {scenes}/shards/*.tar"


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_said_to_be_one(tmp_path: Path, how: str):
    with tarfile.open(tmp_path / "00000.tar", f"w:{how}"):
        pass
    with pytest.raises(TrainerError) as caught:
        find_shards((f"{tmp_path}/*.tar",), _cache(tmp_path))
    assert "00000.tar is compressed: unpack it" in _one_line(caught)


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


def test_what_a_killed_process_left_in_the_cache_goes_away(scenes: Path, tmp_path: Path):
    """A copy that another process is making stays."""
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    old, new = folder / "old.part", folder / "new.part"
    for partial in (old, new):
        partial.write_bytes(b"some of a shard")
    os.utime(old, (1, 1))
    find_shards((f"file://{scenes}/shards/00000.tar",), _cache(tmp_path)).reader(0)
    assert new.exists()
    assert not old.exists()


def _set_without_counts(folder: Path, samples: int = 20) -> Path:
    """Write one tar of generated scenes, three members a sample, and nothing that says how many."""
    write_scene_shards(folder, (samples,))
    for name in ("manifest.json", "sizes.json"):
        (folder / name).unlink()
    return folder / "00000.tar"


def _damaged(tar: Path) -> str:
    with pytest.raises(TrainerError) as caught:
        find_shards((str(tar),), _cache(tar.parent))
    assert f"shard {tar}" in _one_line(caught)
    return str(caught.value)


@pytest.mark.parametrize("where", ["flipped bit", "overwritten", "cut", "cut before", "another tar"])
def test_a_tar_that_tarfile_would_read_in_part_is_refused(tmp_path: Path, where: str):
    path = _set_without_counts(tmp_path)
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        header = tar.getmembers()[30].offset
    if where == "flipped bit":
        content[header + 130] ^= 1
    elif where == "overwritten":
        content[header : header + 512] = b"Z" * 512
    elif where == "cut":
        del content[header + 100 :]
    elif where == "cut before":
        del content[header:]
    else:
        content += bytes(content)
    path.write_bytes(content)
    with tarfile.open(path) as tar:
        assert 30 <= len(tar.getmembers()) <= 60, "tarfile sees no fault"
    message = _damaged(path)
    assert "was truncated" in message if where == "cut before" else "is damaged" in message


@pytest.mark.parametrize("zeros", [512, 1024, 4096, 100_000])
def test_any_number_of_zero_blocks_ends_a_tar(tmp_path: Path, zeros: int):
    path = _set_without_counts(tmp_path)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    end = last.offset_data + -(-last.size // 512) * 512
    path.write_bytes(path.read_bytes()[:end] + bytes(zeros))
    assert find_shards((str(path),), _cache(tmp_path)).counts.tolist() == [20]
    path.write_bytes(path.read_bytes()[:end] + bytes(100))
    assert "was truncated" in _damaged(path)


def _manifest(shards: object) -> str:
    return json.dumps({"format": "wit-shards/1", "samples": 20, "shards": shards})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", "[]"),
        ("manifest.json", ""),
        ("manifest.json", '{"format": "wit-shards/1"}'),
        *(
            ("manifest.json", _manifest([{"tar": "00000.tar", "samples": count}]))
            for count in ("abc", "20", None, 20.5, True, -5, 10**30, 2**62)
        ),
        ("sizes.json", "[1]"),
        ("sizes.json", '{"00000.tar": null}'),
        ("sizes.json", '{"00000.tar": Infinity}'),
    ],
)
def test_invalid_counts_are_one_clear_line(tmp_path: Path, name: str, content: str):
    _set_without_counts(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainerError) as caught:
        find_shards((f"{tmp_path}/*.tar",), _cache(tmp_path))
    assert _one_line(caught).startswith(f"{tmp_path}/{name} cannot be used: ")


def test_a_tar_that_only_the_manifest_has_is_missed(tmp_path: Path):
    write_scene_shards(tmp_path, (5, 4, 3))
    (tmp_path / "00001.tar").unlink()
    with pytest.raises(TrainerError) as caught:
        find_shards((f"{tmp_path}/*.tar",), _cache(tmp_path))
    assert f"lists {tmp_path}/00001.tar, which does not exist" in _one_line(caught)
    chosen = find_shards((f"{tmp_path}/00000.tar", f"{tmp_path}/0000[23].tar"), _cache(tmp_path))
    assert chosen.counts.tolist() == [5, 3]


def test_a_tar_in_two_globs_is_read_once(tmp_path: Path):
    write_scene_shards(tmp_path, (5, 4))
    found = find_shards((f"{tmp_path}/00001.tar", f"{tmp_path}/*.tar"), _cache(tmp_path))
    assert found.counts.tolist() == [4, 5]


def test_files_that_macos_hides_beside_the_members_are_left_out(tmp_path: Path):
    path = tmp_path / "mac.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("._0.jpg", "0.jpg", "._0.txt", "0.txt", "1.avif", "1.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    reader = find_shards((str(path),), _cache(tmp_path)).reader(0)
    samples = [reader.read(number, with_json=False) for number in range(len(reader))]
    assert [(sample.image, sample.text) for sample in samples] == [(b"0.jpg", b"0.txt"), (b"1.avif", b"1.txt")]
