"""Stored bytes change on purpose only: what a build of the recorded web writes is what tests/golden/ holds.

Where a stage writes something else from the same input, workspaces of users must redo it: raise its VERSION, then run
`make golden`.
"""

import json
from pathlib import Path

import pytest
from support import golden


def test_outputs_are_those_in_tests_golden(tmp_path: Path) -> None:
    found = golden.differences(golden.committed(), golden.make(tmp_path))
    assert not found, "\n".join(found)


def changed(path: tuple[str, ...], value: object) -> dict[str, bytes]:
    """Return the committed files with one value of outputs.json replaced."""
    files = golden.committed()
    facts = json.loads(files["outputs.json"])
    table = facts
    for key in path[:-1]:
        table = table[key]
    assert table[path[-1]] != value
    table[path[-1]] = value
    return files | {"outputs.json": json.dumps(facts).encode()}


@pytest.mark.parametrize("stage", golden.STAGES)
def test_a_stage_that_writes_other_bytes_is_named_with_its_version(stage: str) -> None:
    first = next(iter(json.loads(golden.committed()["outputs.json"])["outputs"][stage]))
    (line,) = golden.differences(changed(("outputs", stage, first), "0" * 64), golden.committed())
    assert line.startswith(f"{stage}/: 1 files differ, such as {first}")
    module = golden.STAGES[stage].__name__
    path = module.replace(".", "/") + ".py"
    assert f"raise VERSION in {path}" in line
    assert "\nVERSION = " in (Path(__file__).parent.parent / path).read_text()


def test_a_version_that_was_raised_and_an_updated_library_are_told_apart() -> None:
    first = next(iter(json.loads(golden.committed()["outputs.json"])["outputs"]["plan"]))
    old = changed(("outputs", "plan", first), "0" * 64)
    facts = json.loads(old["outputs.json"])
    facts["versions"]["pipeline.stages.plan"] = -1
    (line,) = golden.differences({**old, "outputs.json": json.dumps(facts).encode()}, golden.committed())
    assert "VERSION of pipeline.stages.plan was raised: run `make golden`" in line
    facts["libraries"]["pyarrow"] = "0.1"
    (line,) = golden.differences({**old, "outputs.json": json.dumps(facts).encode()}, golden.committed())
    assert "pyarrow 0.1 ->" in line


def test_a_file_of_no_stage_is_named() -> None:
    made = golden.committed()
    (line,) = golden.differences({**made, "results.parquet": b""}, made)
    assert line.startswith("results.parquet differs")
