"""`wit queries`: make, check and explain allowlists."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.engine.progress import Progress
from pipeline.errors import ConfigError, UserError
from pipeline.sources import expand_paths
from queries.allowlist import Allowlist, import_allowlist, keep_inputs, write_allowlist
from queries.explain import Entry, count_occurrences, explain
from queries.lint import DEFAULT_MAX_CHARS, DEFAULT_MAX_FRACTION, REASONS, Findings, lint
from queries.list_files import read_captions
from queries.recipe import Recipe
from queries.redact import redact

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_BUILD_EXAMPLES = """\
examples:
  wit queries build --starter --wordnet /usr/share/wordnet --out queries.parquet
  wit queries build --dump enwiki-20240101-pages-articles-multistream.xml.bz2 \\
      --pageviews pageviews-2024*-user.bz2 --wordnet /usr/share/wordnet --out queries.parquet

Run the same command again to resume. Options that are not listed here go to Beam.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit queries` and its commands."""
    queries = subparsers.add_parser("queries", allow_abbrev=False)
    commands = queries.add_subparsers(metavar="COMMAND", required=True)
    _add_download(commands)
    _add_build(commands)
    _add_import(commands)
    _add_lint(commands)
    _add_show(commands)


def _add_download(commands: Subparsers) -> None:
    command = commands.add_parser(
        "download",
        help="download a Wikipedia's dump, page views and WordNet",
        description="Download what `wit queries build` reads, and check it. Run the same command again to go on where "
        "a download broke off.",
        allow_abbrev=False,
    )
    command.add_argument("--wiki", type=_wiki, metavar="LANGUAGE", help="the Wikipedia, such as en")
    command.add_argument("--date", type=_date, default="latest", help="of the dump, YYYYMMDD (default: latest)")
    command.add_argument("--views", type=_month, nargs="+", default=[], metavar="YYYY-MM", help="months of page views")
    command.add_argument("--no-wordnet", action="store_true", help="do not download WordNet 3.0")
    command.add_argument("--to", type=Path, required=True, metavar="DIR", help="the folder of the files")
    command.add_argument("--contact", help="an email address or URL for the User-Agent, as Wikimedia requires")
    command.add_argument("--mirror", metavar="URL", help="a mirror of https://dumps.wikimedia.org")
    command.add_argument("--wordnet-url", metavar="URL", help="another URL of WNdb-3.0.tar.gz")
    command.set_defaults(func=_download)


def _matching(pattern: str, what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise argparse.ArgumentTypeError(f"not {what}: {text!r}")
        return text

    return check


_wiki = _matching("[a-z][a-z_-]{1,30}", "the language of a Wikipedia, such as en")
_date = _matching("latest|20[0-9]{6}", "a date like 20240101, or latest")
_month = _matching("20[0-9]{2}-(0[1-9]|1[0-2])", "a month like 2024-01")


def _download(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from pipeline.allowlist.download import MIRROR, WORDNET_URL, Downloader, download, open_session
    from pipeline.sources.range_stream import Pacer

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with (
        open_session(args.contact) as session,
        Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars,
    ):
        tasks: dict[str, Any] = {}

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        downloader = Downloader(session, args.to, (args.mirror or MIRROR).rstrip("/"), Pacer(), report)
        wordnet_url = None if args.no_wordnet else args.wordnet_url or WORDNET_URL
        found = download(downloader, args.wiki, args.date, args.views, wordnet_url)
    words = ["wit queries build"]
    words += [f"--dump {found.dump}"] if found.dump else []
    words += [f"--pageviews {' '.join(map(str, found.views))}"] if found.views else []
    words += [f"--wordnet {found.wordnet}"] if found.wordnet else []
    words += [] if found.dump else ["--starter"]
    print(f"{args.to}: complete. Next: {' '.join(words)} --out queries.parquet")
    return 0


def _add_build(commands: Subparsers) -> None:
    build = commands.add_parser(
        "build",
        help="make an allowlist from Wikipedia and WordNet",
        description="Make an allowlist from a Wikipedia's frequent words, bigrams and titles, and WordNet's synsets.",
        epilog=_BUILD_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    files = build.add_argument_group("files")
    files.add_argument(
        "--dump", nargs="+", default=[], metavar="FILE", help="pages-articles XML, .bz2 or .gz, all parts"
    )
    files.add_argument("--pageviews", nargs="+", default=[], metavar="FILE", help="page-view files, hourly or daily")
    files.add_argument("--wordnet", metavar="DIR", help="WordNet's dict folder, with index.noun and data.noun")
    files.add_argument("--out", required=True, metavar="FILE", help="the Parquet file to write")
    files.add_argument(
        "--work", metavar="DIR", help="folder of the counts (default: OUT with .counts instead of .parquet)"
    )
    files.add_argument(
        "--project", help='the wiki\'s name in page-view files (default: that of the dump, or "en.wikipedia")'
    )
    files.add_argument(
        "--starter", action="store_true", help="use the words of the wordfreq package and --wordnet, without a dump"
    )

    default = Recipe()
    chosen = build.add_argument_group("size and thresholds")
    number = _positive
    chosen.add_argument(
        "--size", type=number, default=default.size, metavar="N", help="number of entries (default: %(default)s)"
    )
    for name, value, what in (
        ("min-count", default.min_count, "minimum occurrences of a word"),
        ("min-bigram-count", default.min_bigram_count, "minimum occurrences of a bigram"),
        ("min-views", default.min_views, "minimum views of a title"),
    ):
        chosen.add_argument(f"--{name}", type=number, default=value, metavar="N", help=f"{what} (default: {value})")
    for name, part in (("synsets", "20 %%"), ("unigrams", "50 %%"), ("bigrams", "20 %%"), ("titles", "the rest")):
        text = f"new entries from {name}, more only if other sources run short (default: {part})"
        chosen.add_argument(f"--{name}", type=_count, metavar="N", help=text)
    build.add_argument("--quiet", action="store_true", help="do not show progress")
    build.set_defaults(func=_build, takes_beam_options=True)


def _positive(text: str) -> int:
    number = _count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}")
    return int(text)


def _build(args: argparse.Namespace) -> int:
    from pipeline.allowlist.build import Inputs, build_allowlist, build_starter  # with Beam, which takes seconds
    from pipeline.beam.options import parse_beam_options

    wanted = Recipe(
        size=args.size,
        min_count=args.min_count,
        min_bigram_count=args.min_bigram_count,
        min_views=args.min_views,
        synsets=args.synsets,
        unigrams=args.unigrams,
        bigrams=args.bigrams,
        titles=args.titles,
    )
    folder = Path(args.out).parent
    if "://" not in args.out and not folder.is_dir():
        raise ConfigError(f"--out {args.out}: folder {folder} does not exist")
    keep_inputs(args.out, [*args.dump, *args.pageviews])
    if args.starter:
        if args.dump or args.pageviews or args.wordnet is None:
            raise ConfigError("--starter needs --wordnet, and cannot be used with --dump or --pageviews")
        manifest = build_starter(args.size, args.wordnet, args.out)
    else:
        inputs = Inputs(_unique_paths(args.dump), _unique_paths(args.pageviews), args.wordnet, args.project)
        options = parse_beam_options(getattr(args, "beam_args", []))
        work = args.work or args.out.removesuffix(".parquet") + ".counts"
        progress = Progress(None if args.quiet else sys.stderr)
        manifest = build_allowlist(inputs, wanted, args.out, work=work, options=options, progress=progress)
    _print_manifest(args.out, manifest)
    return 0


def _unique_paths(paths: list[str]) -> tuple[str, ...]:
    """Return each file once, because repeated ones would be counted twice."""
    return tuple({path if "://" in path else os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _print_manifest(out: str, manifest: dict[str, Any]) -> None:
    print(f"{out}: {manifest['count']:,} queries")
    for origin, stats in manifest["origins"].items():
        lowest = "" if stats["lowest_score"] is None else f", lowest score {stats['lowest_score']:,g}"
        print(f"  {origin:<9} {stats['given']:>9,} of {stats['entries']:,} entries{lowest}")
    for what in manifest["lacks"]:
        print(f"  lacks: {what}")


def _add_import(commands: Subparsers) -> None:
    command = commands.add_parser(
        "import",
        help="make an allowlist from existing lists",
        description="Make an allowlist from text (one query per line), JSON, Parquet, CSV or TSV files, also "
        "compressed. Queries that match the same strings become one.",
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


def _add_lint(commands: Subparsers) -> None:
    command = commands.add_parser(
        "lint",
        help="find entries that never match, match too much, or repeat others",
        description="Report harmful or useless entries: " + ", ".join(REASONS) + " (see docs/queries.md).",
        allow_abbrev=False,
    )
    command.add_argument("--allowlist", required=True, metavar="FILE", help="the allowlist to check")
    command.add_argument(
        "--captions", nargs="+", default=[], metavar="FILE", help="a sample of captions, to find too common entries"
    )
    command.add_argument("--column", default="caption", help="column of the captions (default: caption)")
    fraction = f"maximum fraction of the captions that a query may match (default: {DEFAULT_MAX_FRACTION:g})"
    command.add_argument("--max-share", type=_fraction, default=DEFAULT_MAX_FRACTION, metavar="FRACTION", help=fraction)
    chars = f"maximum length of an entry (default: {DEFAULT_MAX_CHARS})"
    command.add_argument("--max-chars", type=_positive, default=DEFAULT_MAX_CHARS, metavar="N", help=chars)
    command.add_argument("--fix", action="store_true", help="write the list without the entries found")
    command.add_argument(
        "--keep", nargs="+", choices=REASONS, default=[], metavar="REASON", help="findings that --fix keeps in the list"
    )
    command.add_argument("--out", metavar="FILE", help="the file that --fix writes (default: the list itself)")
    command.set_defaults(func=_lint)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"not a fraction between 0 and 1: {text!r}")
    return fraction


def _lint(args: argparse.Namespace) -> int:
    allowlist = Allowlist.load(args.allowlist)
    samples = expand_paths(args.captions, Path(), "--captions")
    if args.fix:
        keep_inputs(args.out or args.allowlist, samples)
    captions = (batch for path in samples for batch in read_captions(path, args.column))
    queries = allowlist.table["query"].combine_chunks()
    findings = lint(queries, captions, max_chars=args.max_chars, max_fraction=args.max_share)
    print(f"{args.allowlist}: {len(allowlist):,} queries")
    for reason in REASONS:
        if reason == "too_common" and findings.fractions is None:
            print("  too_common       not measured: give a sample with --captions")
        else:
            examples = ", ".join(_example(allowlist, findings, reason))
            print(f"  {reason:<10} {len(findings.rows[reason]):>9,}{f'  {examples}' if examples else ''}")
    if args.fix:
        _fix(allowlist, findings, args)
    return 0


def _example(allowlist: Allowlist, findings: Findings, reason: str) -> list[str]:
    shown = []
    for row in findings.examples(reason, 5):
        query = allowlist.table["query"][int(row)].as_py()
        fraction = (
            f" {findings.fractions[row]:.1%}" if findings.fractions is not None and reason == "too_common" else ""
        )
        shown.append(f"{query if len(query) <= 40 else query[:39] + '…'!r}{fraction}")
    return shown


def _fix(allowlist: Allowlist, findings: Findings, args: argparse.Namespace) -> None:
    dropped = findings.dropped(args.keep)
    kept = np.delete(np.arange(len(allowlist)), dropped)
    if len(kept) == 0:
        raise UserError(f"{args.allowlist}: --fix would leave no query; keep some with --keep")
    counts = {reason: len(findings.rows[reason]) for reason in REASONS if reason not in args.keep}
    facts = {"source": [{"path": redact(args.allowlist), "sha256": allowlist.sha256}], "lint": counts}
    out = args.out or args.allowlist
    manifest = write_allowlist(allowlist.table.take(pa.array(kept)), out, facts)
    print(f"{out}: {manifest['count']:,} queries (dropped: {len(dropped):,})")


def _add_show(commands: Subparsers) -> None:
    command = commands.add_parser(
        "show",
        help="explain an entry: where it is from, what it matches, how often",
        description="Explain how an allowlist matches a word or phrase.",
        allow_abbrev=False,
    )
    command.add_argument("word", metavar="WORD", help="a word or phrase")
    command.add_argument("--allowlist", required=True, metavar="FILE", help="the allowlist to search")
    command.add_argument(
        "--pairs",
        nargs="+",
        default=[],
        metavar="FILE",
        help="tables of captions in which to count matches; also globs and fsspec URLs",
    )
    command.add_argument("--column", default="caption", help="column of the captions (default: caption)")
    command.set_defaults(func=_show)


_MAX_SHOWN = 10


def _show(args: argparse.Namespace) -> int:
    explained = explain(Allowlist.load(args.allowlist), args.word)
    print(f"{args.word!r} is matched as {explained.normal_form!r}")
    if not explained.normal_form:
        print("  it has no letter, digit or symbol, so it never matches")
    elif explained.entry is None:
        print("  it is not an entry")
    else:
        print(f"  entry {explained.entry.id}, spelled {explained.entry.query!r}: {_scores(explained.entry)}")
    for entries, what in (
        (explained.inside, "a caption with it also matches"),
        (explained.around, "entries that contain it"),
    ):
        if entries:
            names = ", ".join(repr(entry.query) for entry in entries[:_MAX_SHOWN])
            more = f" and {len(entries) - _MAX_SHOWN:,} more" if len(entries) > _MAX_SHOWN else ""
            print(f"  {what}: {names}{more}")
    if args.pairs:
        captions = (
            batch for path in expand_paths(args.pairs, Path(), "--pairs") for batch in read_captions(path, args.column)
        )
        occurrences = count_occurrences(args.word, captions)
        fraction = occurrences.matches / occurrences.captions if occurrences.captions else 0
        print(f"  found in {occurrences.matches:,} of {occurrences.captions:,} captions ({fraction:.2%})")
        for example in occurrences.examples:
            print(f"    {example}")
    return 0


def _scores(entry: Entry) -> str:
    return ", ".join(o if score is None else f"{o} (score {score:,g})" for o, score in entry.scores.items())
