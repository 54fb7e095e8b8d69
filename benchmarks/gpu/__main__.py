"""What one GPU makes of the trainer, in 15 minutes: correctness against the CPU, then speed, beside open_clip's loop.

    python -m benchmarks.gpu --out gpu-results                 # on a machine with a GPU
    python -m benchmarks.gpu --out dry-run --small             # every phase at tiny size, also on a CPU

Phases run in the order of their importance until `--minutes` are over, in a process of their own: one that fails,
crashes or exceeds its time leaves the others alone. As they go, results are added to `results.jsonl`, and `results.md`
is written from it. Needs `open_clip_torch[training]` for the comparisons, which are left out without it.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.phases import PHASES
from benchmarks.gpu.report import write_report
from benchmarks.gpu.worker import Worker
from benchmarks.photos import make_shards

LEAST_S = 10
"""No phase is begun with less time."""


def main() -> int:
    """Run the phases; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=14.0, help="for all phases together")
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes: a dry run; a phase may take all the time left"
    )
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), help="only these phases")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the process of the phases, too
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.jsonl").unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        make_shards(Path(folder), *((4, 40) if options.small else (32, 768)))
        bench = Bench(options.out, Path(folder), options.small)
        failed = run_phases(bench, ["setup", *(name for name in PHASES if name in options.only)], deadline)
    bench.say("end", failed=failed)
    write_report(options.out)
    return 1 if failed else 0


def run_phases(bench: Bench, names: list[str], deadline: float) -> list[str]:
    """Run each phase within its time, and return the names of those that failed."""
    failed: list[str] = []
    with Worker(bench) as worker:
        for name in dict.fromkeys(names):
            phase, left_s = PHASES[name], deadline - time.monotonic()
            if left_s < LEAST_S:
                bench.say(name, skipped=f"{max(left_s, 0):.0f} s are left")
                continue
            start = time.monotonic()
            outcome = worker.run(phase.work, left_s if bench.small else min(phase.limit_s, left_s))
            bench.say(name, **outcome, seconds=round(time.monotonic() - start, 1))
            write_report(bench.out)
            if "error" in outcome:
                failed.append(name)
    return failed


if __name__ == "__main__":
    sys.exit(main())
