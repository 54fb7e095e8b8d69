"""`wit queries`: make, check and explain allowlists."""

import argparse
from typing import TypeAlias

from queries.allowlist import import_allowlist

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit queries` and its commands."""
    queries = subparsers.add_parser("queries", help="make, check and explain allowlists", allow_abbrev=False)
    commands = queries.add_subparsers(metavar="COMMAND", required=True)
    _add_import(commands)


def _add_import(commands: Subparsers) -> None:
    command = commands.add_parser(
        "import",
        help="make an allowlist of lists you have",
        description="Make an allowlist of text (one query a line), JSON, Parquet, CSV or TSV files, also compressed. "
        "Queries that match the same strings become one.",
        allow_abbrev=False,
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="a list: local path or URL")
    command.add_argument("--out", required=True, metavar="FILE", help="the Parquet file to write")
    command.add_argument("--column", default="query", help="column of queries in Parquet, CSV, TSV (default: query)")
    command.set_defaults(func=_import)


def _import(args: argparse.Namespace) -> int:
    manifest = import_allowlist(args.files, args.out, column=args.column)
    dropped = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in manifest["dropped"].items() if n)
    print(f"{args.out}: {manifest['count']:,} queries{f' (dropped: {dropped})' if dropped else ''}")
    return 0
