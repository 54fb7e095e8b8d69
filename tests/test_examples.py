"""The scripts in examples/ run as a reader starts them, on small data, and say what is true."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.processes import TINY
from support.recorded_web import make_project
from support.scene_shards import draw_scene, scene_of, write_scene_shards

from pipeline import run_build
from pipeline.engine.progress import Progress

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """Run an example in a new process, outside the repository; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_example_is_left_out() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix == ".py")
    assert len(scripts) == 4
    assert all(f'run("{name}"' in text for name in scripts)


def test_match_and_balance(tmp_path: Path) -> None:
    lines = run("match_and_balance.py", folder=tmp_path).splitlines()
    assert lines[-1] == f"{len(lines) - 1} of 6 pairs kept"
    for query in ("dog", "red house", "boat"):
        selected = [line for line in lines if f"'{query}'" in line.partition("selected by")[2]]
        assert len(selected) == (1 if query == "boat" else 2)
        assert all(query in line.partition("selected by")[0] for line in selected)


def test_inspect_set(tmp_path: Path) -> None:
    config = make_project(tmp_path)
    account = run_build(config, progress=Progress(None))
    printed = run("inspect_set.py", str(config.parent / "work"), folder=tmp_path)
    samples = account.stages[-1].kept
    assert f"{samples:,} samples" in printed
    for reason in ("exact_duplicate", "near_duplicate"):
        assert f"dropped as {reason}: {account.stages[3].reasons[reason]:,}" in printed
    assert "shapes: 3 of 5 images are in the set" in printed
    _check_random_access(config.parent / "work", tmp_path)


def _check_random_access(work: Path, folder: Path) -> None:
    printed = run("random_access.py", str(work), "DOG", folder=folder).splitlines()
    rows = [row for path in sorted((work / "shards").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    dogs = sorted(row["uid"] for row in rows if row["status"] == "success" and "dog" in row["caption"].lower())
    sizes = {row["uid"]: f"{row['width']} x {row['height']} {row['size']:,} bytes" for row in rows if row["size"]}
    assert printed[0] == f"{len(dogs):,} samples have 'DOG' in their caption"
    assert [line.split()[0] for line in printed[1:]] == dogs[:5]
    assert all(sizes[line.split()[0]] in line for line in printed[1:])


@pytest.mark.slow
def test_train_and_evaluate(tmp_path: Path) -> None:
    write_scene_shards(tmp_path / "work/shards", (60, 40))
    for number in range(24):
        colour, shape = scene_of(number)
        path = tmp_path / "evals" / colour / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw_scene(colour, shape, seed=1_000 + number))
    tables = [f"[{name}]\n{_toml(table)}" for name, table in _nested("train", {**TINY, "steps": 4}).items()]
    (tmp_path / "wit.toml").write_text(
        'workspace = "work"\nseed = 7\n'
        + "\n".join(tables)
        + '\n[[evals]]\nname = "colours"\nkind = "folder"\npath = "evals"\n'
    )
    printed = run("train_and_evaluate.py", "wit.toml", folder=tmp_path)
    assert "colours: accuracy" in printed
    assert "24 examples" in printed
    assert (tmp_path / "work/evals/colours/results").is_dir()


def _nested(name: str, table: dict[str, object]) -> dict[str, dict[str, object]]:
    """Return dotted name -> values of a table and of the tables in it."""
    found: dict[str, dict[str, object]] = {name: {k: v for k, v in table.items() if not isinstance(v, dict)}}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= _nested(f"{name}.{key}", value)
    return found


def _toml(table: dict[str, object]) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
