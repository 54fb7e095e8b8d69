"""What a step of hundreds of thousands of units costs the driver: its job, watching it, and a resume.

    python -m benchmarks.driver [--units 720000] [--run 20000] [--processes 2] [--watch-s 60] [--folder DIR]

`run` units are done by workers, each writes an empty file and its marker; the markers of all other units are written
here, as workers would. Then a build resumes twice: the first reads every marker and packs them, the second reads the
pack. Last, two units that take `watch-s` are left to do, and the driver watches. `graph` is the size of the job that
Beam gets. With a folder, its workspace is kept there, and if it has the markers already, only the second resume and the
watching are measured. The last line is JSON.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import apache_beam as beam

from pipeline.beam.runner import parse_beam_options
from pipeline.engine import run
from pipeline.engine.progress import Progress
from pipeline.engine.run import Build, run_units
from pipeline.engine.units import Marker, Stateless, Unit, UnitOutput, digest, marker_name, write_marker
from pipeline.engine.workspace import FileFacts, Workspace

STEP = "driver/step"


@dataclass(frozen=True)
class Tiny:
    """Writes an empty file; a payload of seconds waits."""

    def run(self, payload: float, output: UnitOutput) -> Mapping[str, int]:
        time.sleep(payload)
        return {"inputs": 7, "kept": 5, "no_match": 2}


def make_units(count: int) -> list[Unit]:
    return [
        Unit(f"part-{number:06d}", digest("driver", number), 0.0, f"crawl/{number}.warc.gz") for number in range(count)
    ]


def write_markers(workspace: Workspace, units: list[Unit]) -> None:
    """Write markers of finished units without waiting for the disk; each names two files of a part."""
    folder = Path(workspace.path(marker_name(STEP, ""))).parent
    folder.mkdir(parents=True, exist_ok=True)
    outputs = Path(workspace.path("out"))
    outputs.mkdir(exist_ok=True)
    for unit in units:
        facts = {f"out/{unit.name}.{kind}": FileFacts(0, "0" * 64) for kind in ("tar", "parquet")}
        for name in facts:
            Path(workspace.path(name)).touch()
        told = Marker(unit.digest, facts, {"inputs": 7_000, "kept": 5_000}, unit.about).to_json()
        (folder / f"{unit.name}.json").write_text(json.dumps(told, indent=1))


def measured(name: str, work: "object", found: dict[str, float]) -> None:
    start_s, cpu_s = time.perf_counter(), time.process_time()
    work()  # type: ignore[operator]
    found[f"{name}_s"] = round(time.perf_counter() - start_s, 2)
    found[f"{name}_cpu_s"] = round(time.process_time() - cpu_s, 2)
    print(f"{name:<24} {found[f'{name}_s']:>8.1f} s  {found[f'{name}_cpu_s']:>8.1f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=720_000)
    parser.add_argument("--run", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--watch-s", type=float, default=60)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    options = parse_beam_options(["--direct_running_mode=multi_processing", f"--direct_num_workers={args.processes}"])
    found: dict[str, float] = {}
    graphs: list[int] = []

    def noting(wire, options):  # type: ignore[no-untyped-def]
        pipeline = beam.Pipeline(options=options)
        wire(pipeline)
        graphs.append(len(pipeline.to_runner_api().SerializeToString()))
        return run_pipeline(wire, options)

    def timing(reports):  # type: ignore[no-untyped-def]
        reported = read_reports(reports)
        found["watching_cpu_s"] = time.thread_time()
        return reported

    run_pipeline, read_reports = run.run_pipeline, run.Reports.read
    units = make_units(args.units)
    with tempfile.TemporaryDirectory(prefix="wit-driver-") as folder, patch.object(run, "run_pipeline", noting):
        build = Build(Workspace(str(args.folder or folder)), options, Progress(None))
        if len(build.workspace.sizes(f".wit/{STEP}")) < args.units:
            measured("run", lambda: run_units(build, STEP, units[: args.run], Stateless(Tiny())), found)
            found["run_driver_cpu_ms_per_unit"] = round(1_000 * found["run_cpu_s"] / args.run, 3)
            write_markers(build.workspace, units)
            measured("resume_first", lambda: run_units(build, STEP, units, Stateless(Tiny())), found)
        measured("resume", lambda: run_units(build, STEP, units, Stateless(Tiny())), found)
        slow = [Unit(f"slow-{number}", digest("slow", number), args.watch_s) for number in range(2)]
        for unit in units[: len(slow)]:
            Path(build.workspace.path(marker_name(STEP, unit.name))).unlink()
        with patch.object(run.Reports, "read", timing):
            measured("watch", lambda: run_units(build, STEP, [*units[len(slow) :], *slow], Stateless(Tiny())), found)
        for unit in units[: len(slow)]:  # as it was, for another run
            write_marker(build.workspace, STEP, unit, UnitOutput(build.workspace), {})
        found["watching_cpu_share"] = round(found["watching_cpu_s"] / args.watch_s, 5)
    found["graph_bytes"] = max(graphs)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(found))


if __name__ == "__main__":
    main()
