"""Our shards train in open_clip's own trainer, and a shard of img2dataset's trains in ours."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from support.processes import tiny_settings
from support.scene_shards import write_scene_shards
from support.shared_data import SHARED

from trainer.train import train


def test_a_third_partys_shard_trains(tmp_path: Path):
    shard = SHARED / "shards" / "cc12m_32.tar"
    if not shard.exists():
        pytest.skip("needs the shared data: set WIT_SHARED_DATA")
    settings = tiny_settings(tmp_path, tmp_path / "out", shards=[str(shard)], batch=16, steps=4)
    assert train(settings) == tmp_path / "out" / "model"


@pytest.mark.slow
def test_our_shards_train_in_open_clips_trainer(tmp_path: Path):
    """open_clip 3.3 needs an older webdataset than ours, so its trainer has an environment of its own."""
    python = os.environ.get("WIT_OPEN_CLIP_PYTHON")
    if python is None:
        pytest.skip("set WIT_OPEN_CLIP_PYTHON to a Python with open_clip_torch[training]")
    write_scene_shards(tmp_path / "shards", (80, 80, 80, 80))
    architecture = tiny_settings(tmp_path, tmp_path).train.architecture
    (tmp_path / "tiny-scenes.json").write_text(json.dumps(architecture))
    script = (
        "import sys, open_clip; open_clip.add_model_config(sys.argv.pop(1)); "
        "from open_clip_train.main import main; main(sys.argv[1:])"
    )
    flags = {
        "--train-data": f"{tmp_path}/shards/{{00000..00003}}.tar", "--dataset-type": "webdataset",
        "--model": "tiny-scenes", "--batch-size": "16", "--epochs": "1", "--workers": "1", "--device": "cpu",
        "--precision": "fp32", "--logs": str(tmp_path / "logs"), "--name": "run", "--log-every-n-steps": "1",
    }  # fmt: skip
    arguments = [part for flag in flags.items() for part in flag]
    run = subprocess.run(
        [python, "-c", script, str(tmp_path / "tiny-scenes.json"), *arguments],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2_000:]
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    assert "[320/320 (100%)]" in log  # 20 steps of 16, counted by open_clip from our sizes.json
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").exists()
