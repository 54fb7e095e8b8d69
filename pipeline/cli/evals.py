"""`wit evals`: list the registered evaluation sets, and index one."""

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import TypeAlias, get_args

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from dedup.errors import DedupError
from dedup.eval_sets import EvalSet, find_set, known_sets, registered
from dedup.eval_sets.index import EvalSummary, index_eval_set
from dedup.eval_sets.registry import Kind
from pipeline.errors import ConfigError, UserError

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit evals` and its commands."""
    evals = subparsers.add_parser("evals", allow_abbrev=False)
    commands = evals.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="the 35 registered sets", allow_abbrev=False)
    listing.set_defaults(func=_list)
    _add_index(commands)


def _add_index(commands: Subparsers) -> None:
    index = commands.add_parser(
        "index",
        help="fingerprint the images of one set",
        description="Read every image of an evaluation set once; write DIR/NAME/index.parquet and thumbnails.parquet. "
        "`wit build` does the same for every [[evals]] table of the config.",
        allow_abbrev=False,
    )
    index.add_argument(
        "name", metavar="NAME", help="a registered name (`wit evals list`), or any other name for your own set"
    )
    index.add_argument(
        "--kind", choices=get_args(Kind), required=True, help="layout; folder: PATH/CLASS/*.png or PATH/*.png"
    )
    index.add_argument("--path", required=True, help="folder, file or glob; also an fsspec URL")
    index.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write the index to")
    index.add_argument("--image-column", default="image", help="parquet: column of encoded images (default: image)")
    index.add_argument(
        "--label-column",
        help="parquet: column of classes; webdataset: field of the json (default: label, if it exists)",
    )
    index.set_defaults(func=_index)


def _list(_: argparse.Namespace) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "title"):
        table.add_column(heading, overflow="fold")
    for heading in ("classes", "images", "found by CLIP"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    for known in registered():
        table.add_row(*_row(known))
    console = Console()
    console.print(table)
    others = ", ".join(known.name for known in known_sets() if not known.is_registered)
    console.print(
        f"\n{len(registered())} sets. The CLIP paper does not list its 35: those marked * are named in it, "
        f"the others are our reconstruction. Also known, not among the 35: {others}. "
        "Use any other name for your own set.",
        highlight=False,
    )
    return 0


def _row(known: EvalSet) -> tuple[str, ...]:
    images = "?" if known.test_images is None else f"{known.test_images:,}"
    found = "" if known.clip_overlap_percent is None else f"{known.clip_overlap_percent:.1f}%"
    stated = " *" if known.basis == "stated" else ""
    return known.name, f"{known.title}{stated}", f"{known.classes:,}", images, found, known.metric


def _index(args: argparse.Namespace) -> int:
    if not _NAME.fullmatch(args.name):
        raise ConfigError(
            f"name {args.name!r}: use lower-case letters, digits, '.', '_' and '-'; start with a letter or digit"
        )
    _note_unknown(args.name)
    try:
        summary = _index_with_progress(args)
    except (FileNotFoundError, DedupError) as error:
        raise UserError(f"{args.name}: {error}") from error
    lost = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in summary.failures.items())
    print(f"{args.out / args.name}: {summary.indexed:,} images{f' (left out: {lost})' if lost else ''}")
    _note_size(summary)
    return 0


def _index_with_progress(args: argparse.Namespace) -> EvalSummary:
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f} images"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"indexing {args.name}", total=None)
        return index_eval_set(
            args.name,
            args.kind,
            args.path,
            args.out,
            image_column=args.image_column,
            label_column=args.label_column,
            on_progress=lambda done: progress.update(task, completed=done),
        )


def _note_unknown(name: str) -> None:
    near = difflib.get_close_matches(name, [known.name for known in known_sets()], n=1)
    if find_set(name) is None and near:
        print(f"wit: note: {name!r} is not a registered name; did you mean {near[0]!r}?", file=sys.stderr)


def _note_size(summary: EvalSummary) -> None:
    """Print a note if the number of images is not that of the registered test set, for example train and test."""
    known = find_set(summary.name)
    if known and known.test_images and abs(summary.indexed - known.test_images) > 0.01 * known.test_images:
        print(
            f"wit: note: the test set of {known.title} has {known.test_images:,} images, not {summary.indexed:,}",
            file=sys.stderr,
        )
