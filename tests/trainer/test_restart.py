"""A run whose process is killed is started again by torchrun and goes on by itself."""

import json
import subprocess
import sys
from pathlib import Path

from support.scene_shards import write_scene_shards

from trainer import checkpoint

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {root!r} + "/tests"]  # tests/ has folders of the same names
from support.processes import tiny_settings
from trainer.train import train

def die_once(step, batch):
    mark = Path({folder!r}) / "killed"
    if step == 7 and os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0" and os.environ["RANK"] == "0":
    time.sleep(3)  # the other process looks for this one, and must not find the one that has died
settings = tiny_settings(Path({folder!r}), Path({folder!r}) / "out", steps=12, checkpoint_steps=5, log_steps=1)
try:
    train(settings, on_step=die_once)
except Exception as error:
    print(error)
    sys.exit(1)
"""


def test_torchrun_starts_a_killed_run_again(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (60, 60))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(root=str(Path(__file__).parent.parent.parent), folder=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    assert (tmp_path / "killed").exists()
    (newest,) = checkpoint.list_checkpoints(tmp_path / "out" / "checkpoints")[-1:]
    assert checkpoint.load(newest)["step"] == 12
    steps = [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))
    assert (tmp_path / "out" / "model").exists()
