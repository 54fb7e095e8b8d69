"""Runs whose output is on a store: written beside the steps, resumed on a machine that knows nothing of them."""

import asyncio
import functools
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from moto.server import DomainDispatcherApplication, create_backend_app
from support.processes import run, tiny_settings
from support.s3_server import s3_settings
from werkzeug.serving import make_server

from dedup.eval_sets.results import RESULTS
from trainer import checkpoint, remote_shards, sharded, store_claim
from trainer.config import Settings, settings_from
from trainer.data import Batch
from trainer.errors import TrainerError
from trainer.evaluation.models import open_encoder
from trainer.evaluation.zero_shot import ZeroShotResult, write_results
from trainer.init_weights import load_initial
from trainer.train import train

STEPS: dict[str, Any] = {"steps": 12, "checkpoint_steps": 3, "log_steps": 1, "eps": 1e-4}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """Return a bucket of an S3 server, in a process of its own: clients that are killed make its threads fail."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    server = context.Process(target=_serve, args=(sender,), daemon=True)
    server.start()
    with s3_settings(f"http://127.0.0.1:{receiver.recv()}"):
        yield boto3.resource("s3").create_bucket(Bucket="runs")
    server.kill()
    server.join()


def _serve(sender: Any) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    sender.send(server.port)
    server.serve_forever()


def _settings(scenes: Path, name: str, cache: Path, **keys: Any) -> Settings:
    url = f"s3://runs/{name}"
    plain = tiny_settings(scenes, cache, **{**STEPS, **keys})
    return plain.model_copy(update={"train": plain.train.model_copy(update={"output": url, "cache": str(cache)})})


def _files(bucket: Any, name: str) -> dict[str, Any]:
    """Return the objects of a run by their name in its folder."""
    return {one.key.removeprefix(f"{name}/"): one for one in bucket.objects.filter(Prefix=f"{name}/")}


def _kill_at(mark: Path, steps: tuple[int, ...], step: int, batch: Batch) -> None:
    """Kill the first process before these steps, each once, when the checkpoint of step 3 is on the store."""
    seen = mark.with_name(f"{mark.name}-{step}")
    if step in steps and os.environ.get("RANK", "0") == "0" and not seen.exists():
        seen.touch()
        while not list(boto3.resource("s3").Bucket("runs").objects.filter(Prefix=f"{mark.name}/checkpoints/step-")):
            signal.sigtimedwait([], 0.05)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("form", ["file", "sharded"])
def test_a_killed_run_goes_on_exactly_on_another_machine(scenes: Path, tmp_path: Path, bucket: Any, form: str):
    keys = {"checkpoint_format": form, "keep_checkpoints": 1, "keep_every_steps": 6}
    train(tiny_settings(scenes, tmp_path / "straight", **{**STEPS, **keys}))
    for attempt, code in enumerate((-signal.SIGKILL, -signal.SIGKILL, 0)):
        machine = tmp_path / f"machine-{attempt}"
        settings = _settings(scenes, form, machine, **keys)
        assert run(settings, functools.partial(_kill_at, tmp_path / form, (7, 11))) == [code]
        assert checkpoint.list_checkpoints(settings.output / "checkpoints")
        if code:
            shutil.rmtree(machine)
    files = _files(bucket, form)
    held = {name.split("/")[1] for name in files if name.startswith("checkpoints/step-")}
    suffix = "" if form == "sharded" else ".pt"
    assert held == {f"step-{step:09d}{suffix}" for step in (6, 12)}
    lines = files["metrics.jsonl"].get()["Body"].read().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 13))
    assert {"model/open_clip_config.json", "model/open_clip_model.safetensors"} <= files.keys()
    newest = [
        checkpoint.list_checkpoints(folder / "checkpoints")[-1] for folder in (tmp_path / "straight", settings.output)
    ]
    straight, found = (sharded.read_checkpoint(path)["model"] for path in newest)
    assert all(torch.equal(weight, found[name]) for name, weight in straight.items())


def test_each_process_uploads_its_part(scenes: Path, tmp_path: Path, bucket: Any):
    """A part that is missing would be an error of the second run, which reads the store only."""
    keys = {"checkpoint_format": "sharded", "parallel": "fsdp"}
    for steps, cache in ((6, tmp_path / "one"), (12, tmp_path / "other")):
        settings = _settings(scenes, "parts", cache, **{**keys, "steps": steps})
        assert run(settings, processes=2) == [0, 0]
    names = {name.rpartition("/")[2] for name in _files(bucket, "parts") if "step-000000006/" in name}
    assert {".metadata", "about.pt"} < names
    assert {name[:4] for name in names if name.startswith("__")} == {"__0_", "__1_"}
    first = json.loads(_files(bucket, "parts")["metrics.jsonl"].get()["Body"].read().splitlines()[0])
    assert first["step"] == 1


def test_the_copy_on_the_machine_does_not_count(scenes: Path, tmp_path: Path, bucket: Any):
    """Without the newest checkpoint, as after a deletion, the one before is used; a damaged one is passed over."""
    settings = _settings(scenes, "deleted", tmp_path)
    assert run(settings) == [0]
    files = _files(bucket, "deleted")
    files["checkpoints/step-000000012.pt"].delete()
    files["checkpoints/step-000000009.pt"].put(Body=b"damaged")
    longer = _settings(scenes, "deleted", tmp_path, steps=8)
    assert run(longer, functools.partial(_note, tmp_path / "steps")) == [0]
    seen = [int(line) for line in (tmp_path / "steps").read_text().split()]
    assert seen == [6, 7]


def _note(path: Path, step: int, batch: Batch) -> None:
    with path.open("a") as file:
        file.write(f"{step}\n")


def test_models_are_read_from_the_store(scenes: Path, tmp_path: Path, bucket: Any):
    settings = _settings(scenes, "model", tmp_path, steps=2)
    assert run(settings) == [0]
    for name in ("model", "checkpoints/step-000000002.pt"):
        encoder = open_encoder(f"s3://runs/model/{name}")
        assert torch.isfinite(encoder.encode_texts(["a circle"])).all()
        load_initial(encoder.model, f"s3://runs/model/{name}")
    with pytest.raises(TrainerError, match=r"s3://runs/model/none does not exist"):
        open_encoder("s3://runs/model/none")


def _start_another(other: Settings, codes: Path, step: int, batch: Batch) -> None:
    if step == 2:
        codes.write_text(str(run(other)))


def test_a_second_run_is_refused_on_any_machine(
    scenes: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(store_claim, "RENEW_S", 0.2)
    one, other = (_settings(scenes, "claimed", tmp_path / name, steps=4) for name in ("one", "other"))
    assert run(one, functools.partial(_start_another, other, tmp_path / "codes")) == [0]
    assert (tmp_path / "codes").read_text() == "[1]"
    assert "error: another run is training in s3://runs/claimed (process" in capfd.readouterr().out
    assert ".run" not in _files(bucket, "claimed")
    assert run(other) == [0]


def _claim_it(step: int, batch: Batch) -> None:
    if step >= 2:  # again, as a renewal that is under way may replace the first
        other = {"token": "other", "host": "elsewhere", "place": "there", "pid": 7, "renewed": 0.0}
        boto3.resource("s3").Object("runs", "lost/.run").put(Body=json.dumps(other).encode())


def test_a_run_whose_output_was_taken_over_ends_at_once(
    scenes: Path, tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(store_claim, "RENEW_S", 0.2)
    settings = _settings(scenes, "lost", tmp_path, steps=1_000_000, checkpoint_steps=1_000_000)
    assert run(settings, _claim_it) == [1]
    assert "error: another run has taken s3://runs/lost over" in capfd.readouterr().out
    assert not [name for name in _files(bucket, "lost") if name.startswith("checkpoints/step-")]


def test_a_large_shard_comes_in_parts(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote_shards, "PART_BYTES", 10_000)
    content, url = os.urandom(95_001), "s3://runs/parts/00000.tar"
    bucket.put_object(Key="parts/00000.tar", Body=content)
    assert remote_shards.streams_of(url, len(content)) == 4
    assert remote_shards.streams_of("https://host/00000.tar", len(content)) == 1
    remote_shards.fetch(url, tmp_path / "copy", remote_shards.version_of(url))
    assert (tmp_path / "copy").read_bytes() == content
    before = remote_shards.version_of(url)
    bucket.put_object(Key="parts/00000.tar", Body=content[::-1])
    with pytest.raises(TrainerError, match=r"shard s3://runs/parts/00000\.tar was replaced while it was copied"):
        remote_shards.fetch(url, tmp_path / "copy", before)
    bucket.put_object(Key="parts/00000.tar", Body=content[:50_000])
    with pytest.raises(TrainerError, match=r"cannot copy shard|received 50000 of 95001 bytes"):
        remote_shards.fetch(url, tmp_path / "copy", before)
    bucket.put_object(Key="parts/00000.tar", Body=content)
    filesystem, _ = remote_shards.filesystem_of(url)
    whole = filesystem.cat_file
    monkeypatch.setattr(filesystem, "cat_file", lambda path, start, end: whole(path, start=start, end=end - 1))
    with pytest.raises(TrainerError, match=r"cannot copy shard .*: received 9999 of the 10000 bytes from"):
        remote_shards.fetch(url, tmp_path / "copy", remote_shards.version_of(url))


def test_the_parts_of_the_shard_wanted_first_come_first(tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch):
    """The second shard has the requests that the first one leaves, and so the first has the whole bandwidth."""
    monkeypatch.setattr(remote_shards, "PART_BYTES", 10_000)
    urls = [f"s3://runs/order/{number}.tar" for number in range(2)]
    for number in range(2):
        bucket.put_object(Key=f"order/{number}.tar", Body=os.urandom(95_001))
    versions = [remote_shards.version_of(url) for url in urls]
    requested: list[str] = []
    gate, store = threading.Event(), fsspec.get_filesystem_class("s3")
    read = store._cat_file

    async def noted(filesystem: Any, path: str, **span: Any) -> Any:
        requested.append(path)
        while not gate.is_set():
            await asyncio.sleep(0.01)
        return await read(filesystem, path, **span)

    monkeypatch.setattr(store, "_cat_file", noted)
    store.clear_instance_cache()  # those that exist have bound the method
    one_thread = ThreadPoolExecutor(1)
    monkeypatch.setattr(remote_shards, "_requests", lambda process: one_thread)
    copies = []
    for number, (url, version) in enumerate(zip(urls, versions, strict=True)):
        copies.append(threading.Thread(target=remote_shards.fetch, args=(url, tmp_path / str(number), version)))
        copies[-1].start()
        while one_thread._work_queue.qsize() < 10 * number + 9:  # the first part is being read
            time.sleep(0.01)
    gate.set()
    for copy in copies:
        copy.join()
    store.clear_instance_cache()
    assert requested == ["runs/order/0.tar"] * 10 + ["runs/order/1.tar"] * 10
    assert [(tmp_path / name).stat().st_size for name in "01"] == [95_001] * 2


def test_results_on_a_store_make_no_bucket(tmp_path: Path, bucket: Any):
    table = pa.Table.from_pylist([], schema=RESULTS)
    result = ZeroShotResult("set", "accuracy", 0.5, 0.1, 0.5, 0, 0, 2, "a file", table)
    before = [one.name for one in boto3.resource("s3").buckets.all()]  # other tests of this process may have some
    assert write_results("s3://runs/work", "m", result) == "s3://runs/work/evals/set/results/m.parquet"
    held = [one.key for one in bucket.objects.filter(Prefix="work/")]
    assert held == ["work/evals/set/results/m.parquet"]
    assert pq.read_table(io.BytesIO(bucket.Object(held[0]).get()["Body"].read())).schema.equals(RESULTS)
    with pytest.raises(TrainerError, match=r"^cannot write s3://absent/work/evals/set/results/m\.parquet: "):
        write_results("s3://absent/work", "m", result)
    assert [one.name for one in boto3.resource("s3").buckets.all()] == before


def test_a_store_that_refuses_is_one_line(scenes: Path, tmp_path: Path, bucket: Any, capfd: pytest.CaptureFixture[str]):
    for url, message in (("s3://absent/run", "cannot write s3://absent/run: "), ("nothing://run", "train.output")):
        document = {"workspace": str(scenes), "train": {"model": "tiny", "output": url, "cache": str(tmp_path)}}
        given = settings_from(document, tmp_path).train
        settings = _settings(scenes, "none", tmp_path, steps=2)
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"output": given.output})})
        assert run(settings)[0] in (1, 2)
        (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("error: ")]
        assert re.search(message, line)
