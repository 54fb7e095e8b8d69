"""Shards on a server: one that fails, cuts, stalls or changes; and many readers of a cache that holds one at a time."""

import http.server
import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import fsspec
import numpy as np
import pytest
from support.scene_shards import write_scene_shards

from trainer.errors import TrainerConfigError, TrainerError
from trainer.shard_cache import ShardCache
from trainer.shards import ShardSet, find_shards


class _Server:
    """Serves a folder over HTTP; `mode` says how tars fare."""

    def __init__(self, folder: Path) -> None:
        self.mode = "whole"
        self.url = ""
        self.folder = folder
        self.ending = threading.Event()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        name = request.path.lstrip("/")
        file = self.folder / name
        if not file.is_file():
            return request.send_error(404)
        content, mode = file.read_bytes(), self.mode if name.endswith(".tar") else "whole"
        if mode == "refuses":
            return request.send_error(500)
        request.send_response(200)
        request.send_header("Connection", "close")
        if mode != "cut without a length":
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content if mode == "whole" else content[: len(content) // 2 // 512 * 512])
            request.wfile.flush()
            if mode == "stalls":
                self.ending.wait()
        return None


@contextmanager
def _serving(folder: Path) -> Iterator[_Server]:
    site = _Server(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield site
        site.ending.set()
        server.shutdown()


def _copies(folder: Path) -> list[str]:
    return [file.suffix for file in (folder / "cache" / "shards").iterdir() if file.suffix != ".lock"]


@pytest.mark.parametrize("mode", ["refuses", "cut", "cut without a length", "stalls"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_server_that_fails_is_one_clear_line_and_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, announced: bool
):
    impatient = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_read=0.3)}}
    monkeypatch.setitem(fsspec.config.conf, "http", impatient)
    write_scene_shards(tmp_path / "site", (20,))
    if not announced:
        for name in ("manifest.json", "sizes.json"):
            (tmp_path / "site" / name).unlink()
    cache = ShardCache(tmp_path / "cache", 2**30)
    with _serving(tmp_path / "site") as site:
        path = f"{site.url}/00000.tar"
        site.mode = mode
        with pytest.raises(TrainerError) as caught:
            find_shards((path,), cache).reader(0)
        assert "\n" not in str(caught.value)
        assert path in str(caught.value) or "no shards match" in str(caught.value)
        assert not (tmp_path / "cache" / "shards").exists() or not _copies(tmp_path)
        site.mode = "whole"
        assert len(find_shards((path,), cache).reader(0)) == 20


def test_a_store_that_cannot_be_asked_is_one_clear_line(tmp_path: Path):
    cache = ShardCache(tmp_path, 2**30)
    with pytest.raises(TrainerConfigError, match="Protocol not known: foo"):
        find_shards(("foo://bucket/*.tar",), cache)
    with pytest.raises(
        TrainerError, match=r"cannot list the shards http://127\.0\.0\.1:9/\*\.tar: Connect call failed"
    ):
        find_shards(("http://127.0.0.1:9/*.tar",), cache)


def test_a_replaced_shard_is_fetched_again(tmp_path: Path):
    cache = ShardCache(tmp_path / "cache", 2**30)
    glob = f"file://{tmp_path}/site/*.tar"
    for colour in ("red", "blue"):
        write_scene_shards(tmp_path / "site", (20,), scene=lambda number, colour=colour: (colour, "circle"))
        assert find_shards((glob,), cache).reader(0).read(3, with_json=False).text == f"a {colour} circle".encode()
    os.utime(tmp_path / "site" / "00000.tar", (1, 1))  # nothing but its time tells
    find_shards((glob,), cache).reader(0)
    assert _copies(tmp_path) == [".tar"] * 3


@pytest.mark.parametrize("damage", ["cut", "index"])
def test_a_copy_that_was_damaged_is_fetched_again(tmp_path: Path, damage: str):
    write_scene_shards(tmp_path / "site", (20,))
    cache = ShardCache(tmp_path / "cache", 2**30)
    glob = f"file://{tmp_path}/site/*.tar"
    find_shards((glob,), cache).reader(0)
    (copy,) = (tmp_path / "cache" / "shards").glob("*.tar")
    (index,) = (tmp_path / "cache" / "index").glob("*.npy")
    if damage == "cut":
        os.truncate(copy, copy.stat().st_size // 2)
    else:
        os.truncate(index, 10)
    assert find_shards((glob,), cache).reader(0).read(19, with_json=False).text == b"a yellow square"
    assert copy.stat().st_size == (tmp_path / "site" / "00000.tar").stat().st_size


def test_a_copy_is_indexed_once(tmp_path: Path):
    write_scene_shards(tmp_path / "site", (20,))
    cache = ShardCache(tmp_path / "cache", 2**30)
    for _ in range(3):
        find_shards((f"file://{tmp_path}/site/*.tar",), cache).reader(0)
    assert len(list((tmp_path / "cache" / "index").iterdir())) == 1


def _read_all(shards: ShardSet, seed: int) -> None:
    """Open every shard in another order, several times; exit with 1 if one cannot be read."""
    try:
        for number in np.random.default_rng(seed).permutation(np.repeat(np.arange(len(shards.shards)), 4)):
            file, index = shards.cache.open(shards.shards[number].path, shards.shards[number].samples)
            assert len(index) == 2
            assert os.pread(file.fileno(), 5, 257) == b"ustar"
            file.close()
    except BaseException as error:
        print(error)
        os._exit(1)
    os._exit(0)


def test_many_readers_share_a_cache_that_holds_one_shard(tmp_path: Path):
    write_scene_shards(tmp_path / "site", (2,) * 12)
    shards = find_shards((f"file://{tmp_path}/site/*.tar",), ShardCache(tmp_path / "cache", 1))
    context = multiprocessing.get_context("fork")
    readers = [context.Process(target=_read_all, args=(shards, seed)) for seed in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [reader.exitcode for reader in readers] == [0] * 8
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 1
