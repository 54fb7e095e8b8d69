"""`wit status`: how far a build is, and the account of all pairs."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from pipeline.cli.arguments import add_config
from pipeline.errors import NOT_WHOLE
from pipeline.project import Project
from queries.redact import redact

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.account import Account
    from pipeline.stages.status import Status

_MOST_SOURCES = 10


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = commands.add_parser(
        "status",
        help="show progress and the account of all pairs",
        description="Show who runs a build and how far it is, or what an interrupted one left open; the account of all "
        "pairs, by stage, source and reason, with examples. Works on any machine that reads the workspace. Exit 6 if "
        "nothing runs and the account does not close or files are missing.",
        allow_abbrev=False,
    )
    add_config(status)
    status.add_argument("--json", action="store_true", help="print JSON, for programs")
    status.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=5.0,
        metavar="SECONDS",
        help="print again every 5 seconds, or SECONDS",
    )
    status.set_defaults(func=_status)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"not a number of seconds from 0.1 to 86400: {text!r}")
    return seconds


def _status(args: argparse.Namespace) -> int:
    workspace = Project.load(args.config).workspace
    from rich.console import Console

    from pipeline.stages.status import read_status

    console = Console()
    while True:
        status = read_status(workspace)
        if args.json:
            print(redact(json.dumps(status.to_json())), flush=True)
        else:
            if args.watch is not None and console.is_terminal:
                console.clear()
            _print_status(status, console)
        if args.watch is None or not status.is_running:
            break
        time.sleep(args.watch)
    if not args.json:
        for problem in status.problems:
            print(f"wit: {problem}", file=sys.stderr)
    return NOT_WHOLE if status.problems else 0


def _print_status(status: "Status", console: "Console") -> None:
    from pipeline.stages.status import describe_run

    if status.run is not None:
        for line in describe_run(status.run):
            print(redact(line))
    if not status.account.stages:
        if status.run is None:
            print("nothing has been built yet: run `wit build`")
        return
    print_account(status.account, status)
    for line in status.notes:
        print(redact(line))
    if len(status.sources) > 1:
        _print_sources(status, console)


def _print_sources(status: "Status", console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("source", "left"),
        ("files", "right"),
        ("in", "right"),
        ("kept", "right"),
        ("most lost", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for source in status.sources[:_MOST_SOURCES]:
        most = ", ".join(f"{reason} {n / source.inputs:.1%}" for reason, n in list(source.reasons.items())[:2])
        table.add_row(redact(source.source), f"{source.files:,}", f"{source.inputs:,}", f"{source.kept:,}", most)
    console.print()
    console.print(table)
    if len(status.sources) > _MOST_SOURCES:
        print(f"and {len(status.sources) - _MOST_SOURCES:,} more: see --json")


def print_account(account: "Account", status: "Status | None" = None) -> None:
    """Print the account as a table, one line per stage and one per reason, with an example where there is one."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("stage", "left"), ("in", "right"), ("kept", "right"), ("share", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    if status is not None:
        table.add_column("for example", no_wrap=True, overflow="ellipsis")
    for stage in account.stages:
        share = f"{stage.kept / stage.inputs:.1%}" if stage.inputs else "-"
        table.add_row(stage.stage, f"{stage.inputs:,}", f"{stage.kept:,}", share, style="bold")
        for reason, count in sorted(stage.reasons.items(), key=lambda item: -item[1]):
            example = "" if status is None else next(iter(status.examples.get(reason, ())), "")
            cells = [f"  {reason}", f"-{count:,}", "", f"{count / stage.inputs:.1%}"]
            table.add_row(*cells, *([redact(example)] if status is not None else []), style="dim")
    Console().print(table)
    empty = account.emptied_by()
    if empty is not None:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in empty.reasons.items())
        print(f"wit: the dataset is empty: {empty.stage} kept 0 of {empty.inputs:,} rows ({reasons})", file=sys.stderr)
