"""`wit sources`: look at the sources of a config before a build."""

import argparse
from typing import TypeAlias

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError
from pipeline.project import Project
from queries.redact import redact

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SHOWN = 100  # characters of a caption


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit sources` and its command."""
    sources = subparsers.add_parser("sources", allow_abbrev=False)
    commands = sources.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="read the first rows of each source and show what they are",
        description="Read the first rows of each source and print rows, columns, languages, matches and examples. Exit "
        "1 if a source cannot be read.",
        allow_abbrev=False,
    )
    add_config(check)
    check.add_argument(
        "--rows", type=int, default=2_000, metavar="N", help="rows of each source (default: %(default)s)"
    )
    check.set_defaults(func=_check)


def _check(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    if args.rows < 1:
        raise ConfigError(f"--rows {args.rows}: must be 1 or more")
    from pipeline.filters.pairs import PairFilters
    from pipeline.sources.opt_out import PagePolicy
    from pipeline.stages.pairs import PairSelection
    from pipeline.stages.source_check import SourceSample, check_sources
    from pipeline.stages.source_files import source_files
    from queries.match import QueryMatcher

    config = project.config
    selection = None
    filters = PairFilters.of(config.filters, project.base_dir).open()
    try:
        selection = PairSelection(QueryMatcher(project.load_allowlist().queries), filters)
    except ConfigError as error:
        print(f"matches are not counted: {error}")
    files = source_files(config, project.base_dir, project.workspace)
    is_sound = True

    def show(found: SourceSample) -> None:
        name = found.source.preset or ", ".join(redact(path) for path in found.source.paths) or found.source.crawls
        print(f"{found.source.kind} {name}: {found.files:,} files")
        print(f"  rows read      {found.rows:,}, of which {_share(found.candidates, found.rows)} have a URL and a text")
        for reason, count in found.dropped.most_common():
            print(f"    {reason:<22} {_share(count, found.rows)}")
        if selection is not None:
            print(f"  match a query  {_share(found.matched, found.candidates)}")
        for reason, count in found.filtered.most_common():
            print(f"    {reason:<22} {_share(count, found.matched)}")
        if found.columns:
            print(f"  columns        {', '.join(found.columns)}")
        if found.extra:
            print(f"  kept           {', '.join(found.extra)}")
        for title, counter in (("languages", found.languages), ("texts", found.fields)):
            top = ", ".join(f"{what} {count / found.candidates:.0%}" for what, count in counter.most_common(6))
            print(f"  {title:<14} {top or '-'}")
        print(f"  hosts          {len(found.hosts):,}")
        for caption, url in found.examples:
            shown = caption if len(caption) <= _SHOWN else f"{caption[: _SHOWN - 1]}…"
            print(f"    {shown}\n      {redact(url)}")
        if found.problem:
            print(f"  PROBLEM        {found.problem}")

    for found in check_sources(files, config.pairs, PagePolicy.of(config.fetch), selection, args.rows):
        show(found)
        is_sound = is_sound and not found.problem
    return 0 if is_sound else 1


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"
