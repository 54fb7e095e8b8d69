"""Weights & Biases in offline mode, as its own files record it: one run over all restarts."""

import functools
import json
import os
import signal
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import run, tiny_settings

from trainer.data import Batch
from trainer.errors import TrainerConfigError, TrainerError
from trainer.train import train

_BLOCK = 1 << 15


def _records(path: Path) -> Iterator[Any]:
    """Yield the records of a `run-*.wandb`: protocol buffers in a log of LevelDB, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if _BLOCK - position % _BLOCK < 7:
            position += _BLOCK - position % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def _recorded(folder: Path) -> tuple[set[str], list[dict[str, Any]], set[str]]:
    """Return the ids of the run, the values in their order, and the metrics that `step` is the x value of."""
    (path,) = folder.glob("run-*.wandb")
    ids, rows, metrics = set(), [], set()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            ids.add(record.run.run_id)
        elif kind == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            rows.append(values)
        elif kind == "metric" and record.metric.step_metric == "step":
            metrics.add(record.metric.glob_name or record.metric.name)
    return ids, rows, metrics


def _kill_once(folder: Path, step: int, batch: Batch) -> None:
    if step == 8 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_restarts_are_one_run_with_each_step_at_its_place(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    keys = {"steps": 12, "checkpoint_steps": 5, "log_steps": 1, "wandb_project": "tests"}
    settings = tiny_settings(scenes, tmp_path, **keys)
    assert [run(settings, functools.partial(_kill_once, tmp_path))[0] for _ in range(2)] == [-signal.SIGKILL, 0]
    killed, whole = sorted((tmp_path / "wandb").glob("offline-run-*"))
    ids, rows, metrics = _recorded(whole)
    assert ids == {(tmp_path / "wandb_id").read_text()}
    assert killed.name.rpartition("-")[2] == whole.name.rpartition("-")[2] == ids.pop()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(6, 13))
    assert [{key: row[key] for key in ("step", "train/loss")} for row in rows] == [
        {key: line[key] for key in ("step", "train/loss")} for line in lines[5:]
    ]
    assert metrics == {"*"}


def test_without_a_key_it_is_one_line(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Error(Exception):
        """Stands for wandb's own."""

    def init(**_: Any) -> None:
        raise Error("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=Error))
    with pytest.raises(
        TrainerError, match=r"^train\.wandb_project = 'tests': No API key .* Or set WANDB_MODE=offline$"
    ):
        train(tiny_settings(scenes, tmp_path, steps=1, wandb_project="tests"))


def test_without_the_package_it_is_one_line(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainerConfigError, match=r"train\.wandb_project needs wandb: run pip install"):
        train(tiny_settings(scenes, tmp_path, steps=1, wandb_project="tests"))
