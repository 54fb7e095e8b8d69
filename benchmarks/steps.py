"""What each step of a build takes and leaves, for the benchmarks that run stages in their own process."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

from pipeline.engine import run as engine
from pipeline.engine.workspace import Workspace


@dataclass(frozen=True)
class StepCost:
    """A step of a stage: its time, the peak memory of the process in it, and what its folders hold after it."""

    step: str
    wall_s: float
    cpu_s: float
    peak_mib: int
    files: int
    gb: float


def peak_mib() -> int:
    """Return the peak memory of this process since the last call."""
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) >> 10


@contextmanager
def noting_steps(workspace: Workspace, folders: Sequence[str], record: Path | None = None) -> Iterator[list[StepCost]]:
    """Print and collect what the steps that run in this block take; `folders` are measured after each.

    With `record`, a file, the costs are kept there, those of a step that is interrupted too; what earlier runs wrote
    there is collected first. So a measurement can go on where it was interrupted.
    """
    kept = record.read_text().splitlines() if record is not None and record.exists() else []
    costs = [StepCost(**json.loads(line)) for line in kept]
    run_on_beam = engine._run_on_beam

    def noting(build, step, *rest):  # type: ignore[no-untyped-def]
        start_s, cpu_s = time.perf_counter(), time.process_time()
        peak_mib()
        try:
            run_on_beam(build, step, *rest)
        finally:
            wall_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
            sizes = [size for folder in folders for size in workspace.sizes(folder).values()]
            cost = StepCost(step, wall_s, cpu_s, peak_mib(), len(sizes), sum(sizes) / 1e9)
            costs.append(cost)
            print(
                f"| {step} | {wall_s:.1f} | {cpu_s:.1f} | {cost.peak_mib} | {cost.files} | {cost.gb:.3f} |", flush=True
            )
            if record is not None:
                with record.open("a") as file:
                    file.write(json.dumps(asdict(cost)) + "\n")

    print("| step | wall s | CPU s | peak MiB | files after it | GB after it |\n|---|---|---|---|---|---|")
    with patch.object(engine, "_run_on_beam", noting):
        yield costs


def largest(costs: Sequence[StepCost]) -> dict[str, float]:
    """Return the largest memory, bytes and number of files of all steps."""
    return {
        "peak_mib": max(cost.peak_mib for cost in costs),
        "most_gb": round(max(cost.gb for cost in costs), 3),
        "most_files": max(cost.files for cost in costs),
    }
