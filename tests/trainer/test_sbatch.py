"""The Slurm job: which command it starts, in which container, and when it is queued again."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "docker" / "train.sbatch"
SRUN = """#!/bin/bash
if [ "$1" = --help ]; then echo "$SRUN_HELP"; exit; fi
printf '%s\\n' "$@" >"$NOTES/srun"
env >"$NOTES/env"
echo "$SAYS"
exit "$STATUS"
"""
SCONTROL = """#!/bin/bash
case $1 in show) echo node-7; echo node-8 ;; requeue) echo "$2" >>"$NOTES/requeued" ;; esac
"""


def _job(tmp_path: Path, *, status: int = 0, says: str = "model: x", pyxis: bool = False, **variables: str) -> Path:
    """Run the script with commands that note how they were called; return the folder of the notes."""
    notes = tmp_path / "notes"
    notes.mkdir(exist_ok=True)
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("apptainer", "#!/bin/bash\n")):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NOTES": str(notes), "STATUS": str(status), "SAYS": says,
        "SRUN_HELP": "--container-image=[USER@]" if pyxis else "", "SLURM_JOB_ID": "40123", "SLURM_NTASKS": "16",
        "SLURM_NTASKS_PER_NODE": "8", "SLURM_JOB_NODELIST": "node-[7-8]", "SLURM_CPUS_PER_TASK": "12", **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), "wit.toml"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return notes


def _requeued(notes: Path) -> int:
    return len((notes / "requeued").read_text().split()) if (notes / "requeued").exists() else 0


def test_the_processes_know_each_other_and_have_their_cpus(tmp_path: Path):
    notes = _job(tmp_path)
    environment = dict(line.split("=", 1) for line in (notes / "env").read_text().splitlines() if "=" in line)
    assert (environment["WORLD_SIZE"], environment["LOCAL_WORLD_SIZE"]) == ("16", "8")
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("node-7", str(20_000 + 40_123 % 20_000))
    assert "--cpus-per-task=12" in (notes / "srun").read_text().splitlines()
    assert not _requeued(notes)


def test_the_image_is_used(tmp_path: Path):
    pyxis = (_job(tmp_path, pyxis=True, WIT_IMAGE="wit.sqsh", WIT_MOUNTS="/data,/b") / "srun").read_text().splitlines()
    assert "--container-image=wit.sqsh" in pyxis
    assert f"--container-mounts={tmp_path}:{tmp_path},/data:/data,/b:/b" in pyxis
    apptainer = (_job(tmp_path, WIT_IMAGE="wit.sif", WIT_MOUNTS="/data") / "srun").read_text().splitlines()
    start = apptainer.index("apptainer")
    assert apptainer[start : start + 5] == ["apptainer", "exec", "--nv", "--bind", f"{tmp_path},/data"]
    assert "wit.sif" in apptainer


@pytest.mark.parametrize(
    ("status", "says", "requeued"),
    [
        (0, "model: work/train/model", 0),
        (0, "stopped; run the same command again to resume", 1),
        (1, "error: a loader process died", 1),
        (137, "", 1),
        (2, "error: unknown key train.batchsize", 0),
    ],
)
def test_what_can_go_on_is_queued_again(tmp_path: Path, status: int, says: str, requeued: int):
    assert _requeued(_job(tmp_path, status=status, says=says)) == requeued


def test_a_run_that_crashes_again_and_again_is_given_up(tmp_path: Path):
    for _ in range(6):
        notes = _job(tmp_path, status=1, says="error: the loss is nan")
    assert _requeued(notes) == 3
