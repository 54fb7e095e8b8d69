"""`wit demo`: generate a web, serve it, build a dataset from it, and compare the result with what was planted."""

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

_MARK = ".wit-demo.json"  # marks a folder that this module created and may clear
_MADE = ("web", "evals", "work", "queries.txt", "queries.parquet", "queries.manifest.json", "prompts.json", "wit.toml")
_PICTURES_PER_CAP = 50  # the most frequent queries match a fifth of all captions, so this cap removes many pairs
_LEAST_CAP = 40  # planted pairs match rare queries, which must stay below the cap

_CONFIG = """\
# The demo's configuration. To build from your own sources, copy it and change the lines marked with `->`.

workspace = "work"                      # -> any folder, or s3://, gs://, hdfs://
seed = 7

[allowlist]
path = "queries.parquet"                # -> `wit queries build`, or `wit queries import FILE`

[[sources]]
kind = "warc"                           # pages: images with their alt, title and figcaption texts
paths = ["web/sources/*.warc.gz"]       # -> your crawl

[[sources]]
kind = "url-table"                      # tables with a URL and a caption in each row
paths = ["web/sources/*.parquet", "web/sources/*.tsv"]

[balance]
cap = {cap}                                # -> 20000, as in the CLIP paper: maximum pairs per query
slack = 1.5                             # plan cap x slack pairs per query, because some links are dead

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
detector = "copy"                       # also finds crops, borders, screenshots, rotations, overlays; or "pdq"

[[evals]]
name = "objects"                        # some of its images are on the simulated web
kind = "folder"                         # evals/objects/CLASS/*.png
path = "evals/objects"
min_probability = 0.88                  # of an edited copy; -> remove: drawn scenes look more alike than photos

[[evals]]
name = "shapes"                         # none of its images are
kind = "folder"
path = "evals/shapes"
min_probability = 0.88
"""


def _deadline_s() -> float:
    """Return a deadline that sound responses keep on this machine as it is now; those planted to be late never end."""
    return min(30.0, 4.0 * max(1.0, 2 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def run_demo(directory: Path, *, seed: int = 7, pictures: int, quiet: bool = False) -> int:
    """Run the whole demo in `directory`; return 0 if exactly the planted items were found.

    Raises:
        UserError: the folder holds files that are not of a demo.
    """
    started_s = time.monotonic()
    console = Console()
    _clear(directory)
    console.print(f"[bold]wit demo[/] generates a small web of {pictures:,} images and builds a dataset from it.")
    with console.status("generating the web"):
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
    chance = [verdict.kind for verdict in verdicts if verdict.is_right and verdict.missed + verdict.false]
    _print_next_steps(console, directory, wrong, chance, time.monotonic() - started_s)
    return 1 if wrong else 0


def _clear(directory: Path) -> None:
    """Remove an earlier demo from the folder; refuse a folder that holds anything else."""
    if directory.exists() and any(directory.iterdir()):
        if not (directory / _MARK).exists():
            raise UserError(f"{directory} is not empty and was not written by `wit demo`: choose another with --dir")
        for name in _MADE:
            path = directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK).write_text("{}\n", encoding="utf-8")


def print_verdicts(console: Console, verdicts: list[Verdict]) -> None:
    """Print the table of planted and found items."""
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


def _print_next_steps(console: Console, directory: Path, wrong: list[str], chance: list[str], seconds: float) -> None:
    verdict = f"see above: {'; '.join(wrong)}" if wrong else "all planted items were found, and no others"
    if chance and not wrong:
        verdict += f", but for what chance allows among so many pictures: {'; '.join(chance)}"
    console.print(f"\n[bold]{'not ok' if wrong else 'ok'}[/]: {verdict} ({seconds:.0f} s)\n")
    for what, where in (
        ("overlap report", "work/report/index.html"),
        ("shards", "work/shards/"),
        ("planted items", "web/planted.json"),
        ("example config", "wit.toml"),
    ):
        console.print(f"{what:18}{directory / where}", highlight=False, soft_wrap=True)
    config = directory / "wit.toml"
    wit = "wit" if shutil.which("wit") else sys.argv[0]  # `make demo` runs it from an environment not on the PATH
    console.print("\nNext:")
    for command, why in (
        (f"{wit} status -c {config}", "the account of all pairs"),
        (f"{wit} build -c {config}", "run it again: nothing is left to do"),
        (f"tar tf {directory / 'work/shards/00000.tar'} | head", "the first samples"),
    ):
        console.print(f"  {command}  [dim]# {why}[/]", highlight=False, soft_wrap=True)
