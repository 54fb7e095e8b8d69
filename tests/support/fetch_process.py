"""A fetch in a process of its own, which may be killed: `python -m support.fetch_process JOB.json`."""

import json
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]


def start(folder: Path, urls: list[str], *, path: tuple[Path, ...] = (), **settings: Any) -> "subprocess.Popen[bytes]":
    """Start to fetch `urls` with the journal in `folder`; `out.tar` and `out.parquet` appear there at the end."""
    job = write_job(folder, urls, **settings)
    paths = ":".join(map(str, (*path, REPOSITORY, REPOSITORY / "tests")))
    return subprocess.Popen(
        [sys.executable, "-m", "support.fetch_process", str(job)],
        env={"PYTHONPATH": paths, "PATH": "/usr/bin:/bin"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def write_job(folder: Path, urls: list[str], **settings: Any) -> Path:
    """Write what `fetch` is to do."""
    folder.mkdir(exist_ok=True)
    job = folder / "job.json"
    job.write_text(json.dumps({"folder": str(folder), "urls": urls, "settings": settings}))
    return job


def fetch(job_file: Path) -> None:
    """Fetch in this process."""
    from support.fetching import config, plan_of

    from pipeline.fetching.fetcher import Fetcher
    from pipeline.fetching.journal import Journal

    job = json.loads(job_file.read_text())
    folder = Path(job["folder"])
    with (
        tempfile.TemporaryDirectory() as scratch,
        Fetcher(config(**job["settings"])) as fetcher,
        closing(Journal.open(folder / "journal", "settings", Path(scratch))) as journal,
    ):
        with (folder / "making.tar").open("wb") as tar:
            table = fetcher.fetch_part(plan_of(job["urls"]), tar_stream=tar, scratch_dir=Path(scratch), journal=journal)
        pq.write_table(table, folder / "out.parquet")
        (folder / "making.tar").rename(folder / "out.tar")


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
