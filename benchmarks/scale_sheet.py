"""What a set of 400 million pairs takes, stage by stage, computed from constants that were measured.

    python -m benchmarks.scale_sheet            # print the tables of docs/scale.md
    python -m benchmarks.scale_sheet --check    # exit 1 if docs/scale.md has others
    python -m benchmarks.scale_sheet --write    # put them there

Every constant names the command that measures it: run that on your machine, change the value here, and write the page.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import MEMORY_BYTES
from pipeline.engine.shuffle import MAX_BUCKETS
from pipeline.stages.build_cost import DEDUP_CPU_US, IMAGES_PER_CPU_S, SHARDS_CPU_US, WEB_IMAGE_BYTES
from pipeline.stages.dedup.settle import EDGE_BYTES
from pipeline.stages.dedup.steps import _EDGES_PER_IMAGE
from pipeline.stages.plan_candidates import _MOST_SPILLED, _SPILL_ROWS
from pipeline.stages.plan_parts import CANDIDATE_BYTES, candidate_parts, plan_parts

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
_BEGIN, _END = "<!-- computed: begin -->", "<!-- computed: end -->"
WORKERS = 100


@dataclass(frozen=True)
class Constant:
    """A measured number, and how it was measured."""

    value: float
    unit: str
    what: str
    command: str


MEASURED = {
    "wat_mb": Constant(350, "MB", "a WAT file, compressed", "Common Crawl's own statistics"),
    "wat_raw_mb": Constant(1_400, "MB", "the same, unpacked", "benchmarks.extract assumes it"),
    "extract_mb_s": Constant(120, "MB per CPU s", "candidates from WAT records, unpacked", "benchmarks.extract"),
    "match_s": Constant(266_000, "captions per CPU s", "500,000 queries", "benchmarks.matching"),
    "pairs_us": Constant(
        31, "CPU us per pair", "matched pair to pairs/, its matching included", "benchmarks.pairs_to_plan"
    ),
    "pair_bytes": Constant(52, "bytes", "a row of pairs/", "benchmarks.pairs_to_plan"),
    "plan_us": Constant(28, "CPU us per pair", "pairs/ to plan/", "benchmarks.pairs_to_plan"),
    "plan_scratch_bytes": Constant(197, "bytes per pair", "scratch of plan, at its peak", "benchmarks.pairs_to_plan"),
    "plan_mib": Constant(640, "MiB", "the largest process of pairs and plan", "benchmarks.pairs_to_plan"),
    "candidate_bytes": Constant(850, "bytes", "memory of a candidate while a part is sorted", "benchmarks.row_memory"),
    "planned_bytes": Constant(68, "bytes", "a row of plan/", "benchmarks.pairs_to_plan"),
    "web_image_bytes": Constant(
        WEB_IMAGE_BYTES,
        "bytes",
        "an image on the web",
        "mean Content-Length of 14,800 images of Conceptual Captions, 2019",
    ),
    "images_s": Constant(
        IMAGES_PER_CPU_S, "images per CPU s", "requested, checked, shrunk, hashed, in a tar", "benchmarks.fetch"
    ),
    "stored_bytes": Constant(43_000, "bytes", "a stored image (256 px, quality 95)", "benchmarks.late_stages"),
    "fetched_row_bytes": Constant(68, "bytes", "a row of fetched/, most columns null", "benchmarks.late_stages"),
    "fetch_mib": Constant(2_048, "MiB", "a process that fetches: the bound", "docs/fetching.md"),
    "dedup_us": Constant(
        DEDUP_CPU_US, "CPU us per image", "all steps of dedup, of a million images", "benchmarks.dedup_at_scale"
    ),
    "dedup_scratch_bytes": Constant(
        1_033, "bytes per image", "scratch of dedup, at its peak", "benchmarks.dedup_at_scale"
    ),
    "dedup_mib": Constant(528, "MiB", "the largest process of dedup", "benchmarks.dedup_at_scale"),
    "compare_h": Constant(
        30, "CPU h", "comparing the bands of 600 million images, in addition", "benchmarks.dense_buckets"
    ),
    "shard_us": Constant(SHARDS_CPU_US, "CPU us per pair", "fetched/ to shards/", "benchmarks.late_stages"),
    "shard_bytes": Constant(46_300, "bytes", "a sample in its tar", "benchmarks.late_stages"),
    "driver_ms": Constant(0.17, "CPU ms per unit", "the driver, for each unit of a step", "benchmarks.driver"),
}

PRICES = {
    "core hour": 0.04,
    "million reads of a store (GET)": 0.40,
    "million writes (PUT, LIST)": 5.00,
    "TB stored for a month": 23.0,
}
"""Dollars, of a large cloud in 2026: set your own."""


def _m(name: str) -> float:
    return MEASURED[name].value


@dataclass(frozen=True)
class Scenario:
    """The size of a set. `candidates` are (image, text) pairs of the sources, before anything is matched."""

    name: str
    wat_files: int
    candidates: float
    matched: float
    planned: float = 800e6
    fetched: float = 600e6
    kept: float = 400e6

    @property
    def parts(self) -> int:
        return plan_parts(int(self.planned))


SCENARIOS = (
    Scenario("400 million kept of 5 billion matched", 90_000, 36.5e9, 5e9),
    Scenario("the same of eight whole crawls", 720_000, 292e9, 40e9),
)


@dataclass(frozen=True)
class Row:
    """What a stage takes. Bytes in GB; reads and writes are requests to a store."""

    stage: str
    read_gb: float
    written_gb: float
    peak_gb: float  # of what it leaves and its scratch
    files: float
    reads: float
    writes: float
    cpu_h: float
    mib: float
    waits_h: float = 0.0  # for hosts, with any number of processes

    @property
    def wall_h(self) -> float:
        return max(self.cpu_h / WORKERS, self.waits_h)

    @property
    def dollars(self) -> float:
        requests = self.reads * PRICES["million reads of a store (GET)"]
        requests += self.writes * PRICES["million writes (PUT, LIST)"]
        hours = WORKERS * self.wall_h if self.waits_h else self.cpu_h
        storage = self.peak_gb / 1e3 * PRICES["TB stored for a month"]
        return hours * PRICES["core hour"] + requests / 1e6 + storage


_READS_OF_PARQUET = 3  # the footer, its length, the columns
_WRITES_OF_UNIT = 1  # its marker, beside its files
_SCANS_OF_PLAN = 4  # count, select, size, write
_FILES_OF_CRAWL = 3  # a window's outcomes, what it regroups, its journal's copies
_COPIES_OF_FETCH = 3  # of the images: in windows, regrouped, in parts
_ROUNDS = 10  # of settling near duplicates
AT_ONCE = (MEMORY_BYTES // 2) // CANDIDATE_BYTES
SETTLED_AT_ONCE = (MEMORY_BYTES // 2) // (_EDGES_PER_IMAGE * EDGE_BYTES)


_GB = 1e9


def rows_of(size: Scenario) -> Iterator[Row]:
    """Yield what each stage takes."""
    yield _pairs_row(size)
    yield _plan_row(size)
    yield _fetched_row(size)
    yield _dedup_row(size)
    yield _shards_row(size)


def _pairs_row(size: Scenario) -> Row:
    written_gb = size.matched * _m("pair_bytes") / _GB
    extract_s = size.wat_files * _m("wat_raw_mb") / _m("extract_mb_s")
    return Row(
        "pairs",
        read_gb=size.wat_files * _m("wat_mb") / 1e3,
        written_gb=written_gb,
        peak_gb=written_gb,
        files=2 * size.wat_files,
        reads=size.wat_files,
        writes=size.wat_files * (2 + _WRITES_OF_UNIT),
        cpu_h=(extract_s + size.candidates / _m("match_s") + size.matched * _m("pairs_us") / 1e6) / 3600,
        mib=_m("plan_mib"),
    )


def _plan_row(size: Scenario) -> Row:
    matched = size.matched
    spilled = min(_MOST_SPILLED, matched / _SPILL_ROWS)
    candidates = candidate_parts(int(matched), None, AT_ONCE)
    scratch_gb = matched * _m("plan_scratch_bytes") / _GB
    scans = candidates * _SCANS_OF_PLAN * _READS_OF_PARQUET
    units = spilled + 2 * candidates + size.parts
    return Row(
        "plan",
        read_gb=matched * _m("pair_bytes") / _GB + 1.5 * scratch_gb,
        written_gb=scratch_gb + size.planned * _m("planned_bytes") / _GB,
        peak_gb=scratch_gb,
        files=spilled + candidates + 2 * size.parts,
        reads=size.wat_files * _READS_OF_PARQUET + MAX_BUCKETS * spilled * 2 + scans + 64 * size.parts * 2,
        writes=spilled + candidates + 2 * size.parts + _WRITES_OF_UNIT * units,
        cpu_h=matched * _m("plan_us") / 1e6 / 3600,
        mib=_m("plan_mib") + matched / candidates * _m("candidate_bytes") / (1 << 20),
    )


def _fetched_row(size: Scenario) -> Row:
    images_gb = size.fetched * (_m("stored_bytes") + _m("fetched_row_bytes")) / _GB
    windows = size.planned / 50_000
    return Row(
        "fetched",
        read_gb=size.planned * _m("planned_bytes") / _GB + 2 * images_gb,
        written_gb=_COPIES_OF_FETCH * images_gb,
        peak_gb=_COPIES_OF_FETCH * images_gb,
        files=3 * size.parts + _FILES_OF_CRAWL * windows,
        reads=size.parts * (_READS_OF_PARQUET + 2 * 2 * WORKERS) + windows * 2 * windows / WORKERS,
        writes=3 * size.parts + _FILES_OF_CRAWL * windows * 2,
        cpu_h=size.planned / _m("images_s") / 3600,
        mib=_m("fetch_mib"),
        waits_h=BUDGET * INTERVAL_S / 3600,
    )


def _dedup_row(size: Scenario) -> Row:
    fetched = size.fetched
    settled = -(-fetched // SETTLED_AT_ONCE)  # pieces, each of which reads the messages of every bucket
    return Row(
        "dedup",
        read_gb=fetched * (2 * _m("fetched_row_bytes") + 2 * _m("dedup_scratch_bytes")) / _GB,
        written_gb=fetched * 1.5 * _m("dedup_scratch_bytes") / _GB,
        peak_gb=fetched * _m("dedup_scratch_bytes") / _GB,
        files=4 * size.parts + 8 * MAX_BUCKETS + 3 * settled,
        reads=size.parts * 5 * _READS_OF_PARQUET + 8 * 2 * MAX_BUCKETS**2 + _ROUNDS * 2 * settled,
        writes=5 * size.parts + 16 * MAX_BUCKETS + _ROUNDS * 3 * settled,
        cpu_h=fetched * _m("dedup_us") / 1e6 / 3600 + _m("compare_h") * (fetched / 600e6) ** 2,
        mib=_m("dedup_mib"),
    )


def _shards_row(size: Scenario) -> Row:
    shards_gb = size.kept * _m("shard_bytes") / _GB
    return Row(
        "shards",
        read_gb=size.fetched * (_m("stored_bytes") + _m("fetched_row_bytes")) / _GB,
        written_gb=shards_gb,
        peak_gb=shards_gb,
        files=3 * size.parts,
        reads=size.parts * (1 + 2 * _READS_OF_PARQUET),
        writes=(3 + _WRITES_OF_UNIT) * size.parts,
        cpu_h=size.kept * _m("shard_us") / 1e6 / 3600,
        mib=_m("plan_mib"),
    )


LARGEST_SHARE, INTERVAL_S, BUDGET = 0.10, 0.1, 2_000_000


RESIZE = {
    "shorter_side": (43_000, 0.0),
    "longer_side": (23_100, -1.3),
    "center_crop": (31_300, 0.5),
    "pad": (23_900, -1.0),
    "none": (128_300, 2.0),
    "original": (161_900, -1.1),
}
"""`fetch.resize` -> bytes of a stored image, and CPU ms more than with shorter_side: `benchmarks.late_stages`."""


def _resize_table() -> list[str]:
    """Return what each mode of `fetch.resize` takes, of the first scenario."""
    size, rows = SCENARIOS[0], []
    for mode, (stored_bytes, more_ms) in RESIZE.items():
        fetched_tb = size.fetched * stored_bytes / 1e12
        shards_tb = size.kept * (stored_bytes + _m("shard_bytes") - _m("stored_bytes")) / 1e12
        month = shards_tb * PRICES["TB stored for a month"]
        cpu_h = size.planned / _m("images_s") / 3600 + size.fetched * more_ms / 3.6e6
        rows.append([f"`{mode}`", *map(_short, (stored_bytes, _COPIES_OF_FETCH * fetched_tb, shards_tb, month, cpu_h))])
    head = ["`fetch.resize`", "bytes an image", "TB while fetched", "TB of shards", "$ a month", "CPU h of fetched"]
    return _table(head, rows)


def sheet() -> str:
    """Return the tables of the page."""
    lines: list[str] = []
    for size in SCENARIOS:
        rows = list(rows_of(size))
        lines += [
            f"### {size.name[0].upper()}{size.name[1:]}",
            "",
            f"{size.wat_files:,} WAT files, {size.candidates / 1e9:,.1f} billion candidates, {size.matched / 1e9:,.0f}",
            f"billion matched, {size.planned / 1e6:,.0f} million planned, {size.fetched / 1e6:,.0f} million fetched,",
            f"{size.kept / 1e6:,.0f} million kept; {size.parts:,} parts.",
            "",
            *_table(
                ["stage", "read GB", "written GB", "files", "reads", "writes", "CPU h", "MiB a process", "wall h", "$"],
                [*map(_cells, rows), _total(rows)],
            ),
            "",
        ]
    web_tb = SCENARIOS[0].fetched * _m("web_image_bytes") / 1e12
    days = SCENARIOS[0].planned * LARGEST_SHARE * INTERVAL_S / 86_400
    lines += [
        f"`wall h` is with {WORKERS} cores. For `fetched` it is the larger of the CPU time and the slowest host: with",
        f"`fetch.max_pairs_per_host = {BUDGET}` that is {BUDGET * INTERVAL_S / 3600:,.0f} h. Without, a host with",
        f"{LARGEST_SHARE:.0%} of the URLs takes {days:,.0f} days at {INTERVAL_S} s, and {days / 5:,.0f} as an image",
        f"CDN at 0.02 s. The images of the web are {web_tb:,.0f} TB, beside what is read from the store.",
        "Dollars of `fetched` count all cores while they wait; those of storage are for a month, for what a stage",
        "leaves and its scratch.",
        "",
        "### What `fetch.resize` stores",
        "",
        "With `image_size = 256` and quality 95, of the same photos; `original` is a `format`, which keeps the files.",
        "",
        *_resize_table(),
        "",
        "### Prices",
        "",
        *_table(["", "$"], [[name, f"{price:.2f}"] for name, price in PRICES.items()]),
        "",
        "### Constants",
        "",
        *_table(
            ["constant", "value", "unit", "measured by"],
            [[c.what, f"{c.value:,g}", c.unit, f"`{c.command}`"] for c in MEASURED.values()],
        ),
    ]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    numbers = (
        row.read_gb,
        row.written_gb,
        row.files,
        row.reads,
        row.writes,
        row.cpu_h,
        row.mib,
        row.wall_h,
        row.dollars,
    )
    return [row.stage, *map(_short, numbers)]


def _total(rows: Sequence[Row]) -> list[str]:
    sums = [sum(getattr(row, name) for row in rows) for name in ("read_gb", "written_gb", "files", "reads", "writes")]
    rest = [sum(row.cpu_h for row in rows), max(row.mib for row in rows)]
    rest += [sum(row.wall_h for row in rows), sum(row.dollars for row in rows)]
    return ["**all**", *map(_short, [*sums, *rest])]


def _short(number: float) -> str:
    """Format a number with two or three digits that count."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:,.1f}{letter}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def page_with(tables: str) -> str:
    """Return the page with these tables."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{tables}\n\n{_END}{rest.partition(_END)[2]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    if args.write:
        PAGE.write_text(page_with(sheet()), encoding="utf-8")
    elif args.check:
        if PAGE.read_text(encoding="utf-8") != page_with(sheet()):
            sys.exit(f"{PAGE.name} has other tables: run python -m benchmarks.scale_sheet --write")
    else:
        print(sheet())


if __name__ == "__main__":
    main()
