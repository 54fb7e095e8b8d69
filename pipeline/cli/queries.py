"""`wit queries`: make, check and explain allowlists."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.engine.progress import Progress
from pipeline.errors import ConfigError, UserError
from pipeline.sources import expand_paths
from queries.allowlist import Allowlist, import_allowlist, keep_inputs, write_allowlist
from queries.explain import Entry, count_occurrences, explain
from queries.lint import DEFAULT_MAX_CHARS, DEFAULT_MAX_SHARE, REASONS, Findings, lint
from queries.list_files import read_captions
from queries.recipe import Recipe

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
    _add_build(commands)
    _add_import(commands)
    _add_lint(commands)
    _add_show(commands)


def _add_build(commands: Subparsers) -> None:
    build = commands.add_parser(
        "build",
        help="make an allowlist of Wikipedia and WordNet",
        description="Make an allowlist of frequent words, bigrams and titles of a Wikipedia, and of WordNet's synsets.",
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
    files.add_argument("--work", metavar="DIR", help="where counts are kept (default: OUT without .parquet, .counts)")
    files.add_argument(
        "--project", help="the wiki's name in page-view files (default: the dump's, or \"en.wikipedia\")"
    )
    files.add_argument(
        "--starter", action="store_true", help="no dump: the words of the package wordfreq, and --wordnet"
    )

    default = Recipe()
    chosen = build.add_argument_group("what is chosen")
    number = _positive
    chosen.add_argument("--size", type=number, default=default.size, metavar="N", help="entries (default: %(default)s)")
    for name, value, what in (
        ("min-count", default.min_count, "occurrences of a word"),
        ("min-bigram-count", default.min_bigram_count, "occurrences of a bigram"),
        ("min-views", default.min_views, "views of a title"),
    ):
        chosen.add_argument(f"--{name}", type=number, default=value, metavar="N", help=f"{what} (default: {value})")
    for name, share in (("synsets", "20 %%"), ("unigrams", "50 %%"), ("bigrams", "20 %%"), ("titles", "the rest")):
        text = f"{name} that are new in the list, at first (default: {share})"
        chosen.add_argument(f"--{name}", type=_count, metavar="N", help=text)
    build.add_argument("--quiet", action="store_true", help="no progress")
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

    asked = Recipe(
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
        raise ConfigError(f"--out {args.out}: there is no folder {folder}")
    keep_inputs(args.out, [*args.dump, *args.pageviews])
    if args.starter:
        if args.dump or args.pageviews or args.wordnet is None:
            raise ConfigError("--starter takes the place of --dump and --pageviews, and needs --wordnet")
        manifest = build_starter(args.size, args.wordnet, args.out)
    else:
        inputs = Inputs(_unique_paths(args.dump), _unique_paths(args.pageviews), args.wordnet, args.project)
        options = parse_beam_options(getattr(args, "beam_args", []))
        work = args.work or args.out.removesuffix(".parquet") + ".counts"
        progress = Progress(None if args.quiet else sys.stderr)
        manifest = build_allowlist(inputs, asked, args.out, work=work, options=options, progress=progress)
    _print_manifest(args.out, manifest)
    return 0


def _unique_paths(paths: list[str]) -> tuple[str, ...]:
    """Return the files without those that are named again: they would be counted twice."""
    return tuple({path if "://" in path else os.path.realpath(path): path for path in reversed(paths)}.values())[::-1]


def _print_manifest(out: str, manifest: dict[str, Any]) -> None:
    print(f"{out}: {manifest['count']:,} queries")
    for origin, fared in manifest["origins"].items():
        lowest = "" if fared["lowest_score"] is None else f", lowest score {fared['lowest_score']:,g}"
        print(f"  {origin:<9} {fared['given']:>9,} of {fared['entries']:,} entries{lowest}")
    for what in manifest["lacks"]:
        print(f"  lacks: {what}")


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


def _add_lint(commands: Subparsers) -> None:
    command = commands.add_parser(
        "lint",
        help="find entries that never match, match too much, or repeat others",
        description="Report entries that do harm or no good: " + ", ".join(REASONS) + " (see docs/queries.md).",
        allow_abbrev=False,
    )
    command.add_argument("--allowlist", required=True, metavar="FILE")
    command.add_argument(
        "--captions", nargs="+", default=[], metavar="FILE", help="a sample, to find what is too common"
    )
    command.add_argument("--column", default="caption", help="column of the captions (default: caption)")
    share = f"most captions of the sample a query may match (default: {DEFAULT_MAX_SHARE:g})"
    command.add_argument("--max-share", type=_share, default=DEFAULT_MAX_SHARE, metavar="SHARE", help=share)
    chars = f"longest entry (default: {DEFAULT_MAX_CHARS})"
    command.add_argument("--max-chars", type=_positive, default=DEFAULT_MAX_CHARS, metavar="N", help=chars)
    command.add_argument("--fix", action="store_true", help="write the list without what was found")
    command.add_argument(
        "--keep", nargs="+", choices=REASONS, default=[], metavar="REASON", help="what --fix leaves in"
    )
    command.add_argument("--out", metavar="FILE", help="where --fix writes (default: the list itself)")
    command.set_defaults(func=_lint)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"not a share between 0 and 1: {text!r}")
    return share


def _lint(args: argparse.Namespace) -> int:
    allowlist = Allowlist.load(args.allowlist)
    samples = expand_paths(args.captions, Path(), "--captions")
    if args.fix:
        keep_inputs(args.out or args.allowlist, samples)
    captions = (batch for path in samples for batch in read_captions(path, args.column))
    queries = allowlist.table["query"].combine_chunks()
    findings = lint(queries, captions, max_chars=args.max_chars, max_share=args.max_share)
    print(f"{args.allowlist}: {len(allowlist):,} queries")
    for reason in REASONS:
        if reason == "too_common" and findings.shares is None:
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
        share = f" {findings.shares[row]:.1%}" if reason == "too_common" and findings.shares is not None else ""
        shown.append(f"{query if len(query) <= 40 else query[:39] + '…'!r}{share}")
    return shown


def _fix(allowlist: Allowlist, findings: Findings, args: argparse.Namespace) -> None:
    dropped = findings.dropped(args.keep)
    kept = np.delete(np.arange(len(allowlist)), dropped)
    if len(kept) == 0:
        raise UserError(f"{args.allowlist}: --fix would leave no query; spare some with --keep")
    counts = {reason: len(findings.rows[reason]) for reason in REASONS if reason not in args.keep}
    facts = {"source": [{"path": args.allowlist, "sha256": allowlist.sha256}], "lint": counts}
    out = args.out or args.allowlist
    manifest = write_allowlist(allowlist.table.take(pa.array(kept)), out, facts)
    print(f"{out}: {manifest['count']:,} queries (dropped: {len(dropped):,})")


def _add_show(commands: Subparsers) -> None:
    command = commands.add_parser(
        "show",
        help="explain an entry: where it is from, what it matches, how often",
        description="Explain what an allowlist makes of a word or phrase.",
        allow_abbrev=False,
    )
    command.add_argument("word", metavar="WORD")
    command.add_argument("--allowlist", required=True, metavar="FILE")
    command.add_argument(
        "--pairs",
        nargs="+",
        default=[],
        metavar="FILE",
        help="tables of captions to count it in; globs and fsspec URLs too",
    )
    command.add_argument("--column", default="caption", help="column of the captions (default: caption)")
    command.set_defaults(func=_show)


_MOST_SHOWN = 10


def _show(args: argparse.Namespace) -> int:
    found = explain(Allowlist.load(args.allowlist), args.word)
    print(f"{args.word!r} is matched as {found.normal_form!r}")
    if not found.normal_form:
        print("  it has no letter, digit or symbol, so it never matches")
    elif found.entry is None:
        print("  it is not an entry")
    else:
        print(f"  entry {found.entry.id}, spelled {found.entry.query!r}: {_scores(found.entry)}")
    for entries, what in ((found.inside, "a caption with it also matches"), (found.around, "entries that contain it")):
        if entries:
            names = ", ".join(repr(entry.query) for entry in entries[:_MOST_SHOWN])
            more = f" and {len(entries) - _MOST_SHOWN:,} more" if len(entries) > _MOST_SHOWN else ""
            print(f"  {what}: {names}{more}")
    if args.pairs:
        captions = (
            batch for path in expand_paths(args.pairs, Path(), "--pairs") for batch in read_captions(path, args.column)
        )
        seen = count_occurrences(args.word, captions)
        share = seen.matches / seen.captions if seen.captions else 0
        print(f"  found in {seen.matches:,} of {seen.captions:,} captions ({share:.2%})")
        for example in seen.examples:
            print(f"    {example}")
    return 0


def _scores(entry: Entry) -> str:
    return ", ".join(o if score is None else f"{o} (score {score:,g})" for o, score in entry.scores.items())
