"""Pairs per second and peak memory of `wit build --to plan`, and whether memory grows with the number of pairs.

    python -m benchmarks.pairs_to_plan [--pairs 100000 400000] [--queries 500000] [--folder DIR]

Captions are generated: words drawn from a Zipf distribution over the allowlist's own words, so that there are heavy
head queries and a long tail. Each size runs in a process of its own. CPU time is that of the steps, without what a
process takes to start. With a folder, projects are kept there, and a run that was interrupted goes on. The last line is
JSON.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.steps import noting_steps
from pipeline.engine.units import read_markers, read_stage
from pipeline.engine.workspace import Workspace

FILES = 8
_ROWS_PER_FILE = 500_000  # an interrupted run repeats a file at most
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def make_words(count: int, seed: int = 0) -> list[str]:
    """Make distinct random words, shorter ones first, like frequent words."""
    random = np.random.default_rng(seed)
    words: dict[str, None] = {}
    length = 3
    while len(words) < count:
        for letters in _LETTERS[random.integers(0, 26, (count // 4 + 16, length))]:
            words["".join(letters)] = None
        length = min(length + 1, 12)
    return list(words)[:count]


def make_project(folder: Path, pairs: int, words: list[str]) -> Path:
    """Write an allowlist, URL tables with `pairs` rows, and a config; return the config's path."""
    random = np.random.default_rng(1)
    (folder / "words.txt").write_text("\n".join(words))
    files = max(FILES, -(-pairs // _ROWS_PER_FILE))
    for i in range(files):
        rows = pairs // files
        ranks = np.minimum(random.zipf(1.2, (rows, 8)) - 1, len(words) - 1)
        captions = [" ".join(words[r] for r in row) for row in ranks]
        urls = [f"https://host{n % 5000}.example/{i}/{n}.jpg" for n in range(rows)]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / f"table{i}.parquet")
    config = folder / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["table*.parquet"]\n'
        "[balance]\ncap = 500\n[fetch]\nnetwork = false\n"
    )
    return config


def run_build(config: Path) -> dict[str, float]:
    """Run the stages to plan in this process; return the time and the peak memory."""
    from pipeline.cli.main import main

    folder = config.parent
    main(["queries", "import", str(folder / "words.txt"), "--out", str(folder / "queries.parquet")])
    workspace = Workspace(str(folder / "work"))
    with noting_steps(workspace, ("pairs", "plan", ".wit/plan"), folder / "costs.jsonl") as costs:
        code = main(["build", "-c", str(config), "--to", "pairs", "--quiet"])
        pairs_bytes = sum(workspace.sizes("pairs").values())
        code = code or main(["build", "-c", str(config), "--to", "plan", "--quiet"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pairs, plan = (
        sum(m.counts["kept"] for m in read_markers(workspace, "pairs").values()),
        read_stage(workspace, "plan"),
    )
    assert plan is not None
    return {
        "exit": code,
        "wall_s": sum(cost.wall_s for cost in costs),
        "cpu_s": sum(cost.cpu_s for cost in costs),
        "peak_mib": peak,
        "pairs_cpu_s": sum(cost.cpu_s for cost in costs if cost.step == "pairs"),
        "pairs": pairs,
        "planned": plan.counts["kept"],
        "bytes_per_pair": pairs_bytes / pairs,
        "bytes_per_planned": sum(f.bytes for n, f in plan.outputs.items() if "part-" in n) / plan.counts["kept"],
        "scratch_bytes_per_pair": max(cost.gb for cost in costs) * 1e9 / pairs - pairs_bytes / pairs,
        "step_peak_mib": max(cost.peak_mib for cost in costs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[100_000, 400_000])
    parser.add_argument("--queries", type=int, default=500_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run_build(args.run)))
        return
    words, results = make_words(args.queries), {}
    print(f"{platform.machine()}, {platform.python_version()}, {args.queries:,} queries")
    print(f"{'pairs':>10} {'pairs/s':>10} {'pairs/CPU s':>12} {'peak MiB':>10}")
    for pairs in args.pairs:
        with tempfile.TemporaryDirectory(prefix="wit-benchmark-") as temporary:
            folder = args.folder / str(pairs) if args.folder else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            config = folder / "wit.toml"
            if not config.exists():
                config = make_project(folder, pairs, words)
            command = [sys.executable, "-m", "benchmarks.pairs_to_plan", "--run", str(config)]
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(out, flush=True)
        found = json.loads(out.splitlines()[-1])
        results[str(pairs)] = found
        rate, cpu_rate = pairs / found["wall_s"], pairs / found["cpu_s"]
        print(f"{pairs:>10,} {rate:>10,.0f} {cpu_rate:>12,.0f} {found['peak_mib']:>10,.0f}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
