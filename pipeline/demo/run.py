"""`wit demo`: make a world, serve it, build a data set from it, and compare the result with what was planted."""

import json
import os
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.beam.options import parse_beam_options
from pipeline.build import run_build
from pipeline.demo.compare import Verdict, compare
from pipeline.demo.copies import IMAGE_SIZE
from pipeline.demo.failures import RETRIES
from pipeline.demo.server import serve
from pipeline.demo.world import make_world
from pipeline.engine.progress import Progress
from pipeline.errors import UserError
from pipeline.project import Project
from queries.allowlist import import_allowlist

_MARK = ".wit-demo.json"  # in a folder that this module made and may clear
_MADE = ("web", "evals", "work", "queries.txt", "queries.parquet", "queries.manifest.json", "prompts.json", "wit.toml")
_PICTURES_PER_CAP = 50  # the commonest words are in a fifth of all captions: a cap that bites
_LEAST_CAP = 40  # planted pairs carry rare words, and have to be below the cap

_CONFIG = """\
# The demo's configuration. Copy it and change what follows `->` to build from your own sources.

workspace = "work"                      # -> any folder, or s3://, gs://, hdfs://
seed = 7

[allowlist]
path = "queries.parquet"                # -> `wit queries build`, or `wit queries import FILE`

[[sources]]
kind = "warc"                           # pages: images with their alt, title and figcaption texts
paths = ["web/sources/*.warc.gz"]       # -> your crawl

[[sources]]
kind = "url-table"                      # tables that have a URL and a caption in each row
paths = ["web/sources/*.parquet", "web/sources/*.tsv"]

[balance]
cap = {cap}                                # -> 20000, the paper's figure: pairs per query, at most
slack = 1.5                             # planned before fetching: cap x slack, for some links are dead

[fetch]
parts = 8                               # -> one part becomes one shard: some 10,000 pairs each
contact = "mailto:demo@wit.example"     # -> yours; part of the User-Agent
gateway = "{gateway}"     # -> remove this line: it sends every request to the simulated web
image_size = {image_size}                        # -> 256
min_image_size = 32
max_bytes = 2_000_000                   # -> remove from here down: the simulated web is small and quick
timeout_s = {timeout_s:g}
retries = {retries}
host_interval_s = 0.0

[dedup]
evals = "report"                        # or "remove"

[[evals]]
name = "objects"                        # some of its pictures are on the simulated web
kind = "folder"                         # evals/objects/CLASS/*.png
path = "evals/objects"

[[evals]]
name = "shapes"                         # none of its pictures is
kind = "folder"
path = "evals/shapes"
"""


def _deadline_s() -> float:
    """Return a deadline that sound responses keep on this machine as it is now; those planted to be late never end."""
    return min(30.0, 4.0 * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def run_demo(directory: Path, *, seed: int = 7, pictures: int, quiet: bool = False) -> int:
    """Run the whole demo in `directory`; return 0 if everything planted was found and nothing else.

    Raises:
        UserError: the folder holds something that is not a demo.
    """
    started_s = time.monotonic()
    console = Console()
    _clear(directory)
    console.print(f"[bold]wit demo[/] makes a small web of {pictures:,} pictures and builds a data set from it.")
    with console.status("making the web"):
        ledger = make_world(directory, seed, pictures)
    console.print(f"web            {directory / 'web'}  {time.monotonic() - started_s:.0f}s", soft_wrap=True)
    import_allowlist(str(directory / "queries.txt"), str(directory / "queries.parquet"))
    cap = max(_LEAST_CAP, pictures // _PICTURES_PER_CAP)
    with serve(directory / "web") as web:
        config = directory / "wit.toml"
        config.write_text(
            _CONFIG.format(
                cap=cap, image_size=IMAGE_SIZE, gateway=web.gateway, retries=RETRIES, timeout_s=_deadline_s()
            ),
            encoding="utf-8",
        )
        project = Project.load(config)
        run_build(project, parse_beam_options([]), progress=Progress(None) if quiet else Progress())
        requests = web.requests()
    (directory / "web" / "requests.json").write_text(json.dumps(requests, indent=0, sort_keys=True), encoding="utf-8")
    verdicts = compare(directory / "work", ledger, cap, requests)
    print_verdicts(console, verdicts)
    wrong = [verdict.kind for verdict in verdicts if not verdict.is_right]
    _say_what_next(console, directory, wrong, time.monotonic() - started_s)
    return 1 if wrong else 0


def _clear(directory: Path) -> None:
    """Make room for a fresh demo; refuse a folder that holds anything else."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARK).exists():
            raise UserError(f"{directory} is not empty and not a demo of before: choose another folder with --dir")
        for name in _MADE:
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text("{}\n", encoding="utf-8")


def print_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    """Print the table of planted and found things."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="planted and found", title_justify="left")
    table.add_column("kind")
    for name in ("planted", "found", "missed", "false"):
        table.add_column(name, justify="right")
    section = ""
    for verdict in verdicts:
        if verdict.section != section:
            section = verdict.section
            table.add_row(section, style="bold")
        cells = [f"{n:,}" if n else "-" for n in (verdict.planted, verdict.found, verdict.missed, verdict.false)]
        table.add_row(f"  {verdict.kind}", *cells, style="" if verdict.is_right else "bold red")
    console.print(table)


def _say_what_next(console: Console, directory: Path, wrong: list[str], seconds: float) -> None:
    verdict = f"see above: {'; '.join(wrong)}" if wrong else "everything planted was found, and nothing else"
    console.print(f"\n[bold]{'not ok' if wrong else 'ok'}[/]: {verdict} ({seconds:.0f} s)\n")
    for what, where in (
        ("overlap report", "work/report/index.html"),
        ("shards", "work/shards/"),
        ("what was planted", "web/planted.json"),
        ("a config to copy", "wit.toml"),
    ):
        console.print(f"{what:18}{directory / where}", highlight=False, soft_wrap=True)
    config = directory / "wit.toml"
    wit = "wit" if shutil.which("wit") else sys.argv[0]  # `make demo` runs it from an environment not on the PATH
    console.print("\nNext:")
    for command, why in (
        (f"{wit} status -c {config}", "what became of every pair"),
        (f"{wit} build -c {config}", "run it again: everything is done already"),
        (f"tar tf {directory / 'work/shards/00000.tar'} | head", "the first samples"),
    ):
        console.print(f"  {command}  [dim]# {why}[/]", highlight=False, soft_wrap=True)
