"""`wit sources`: look at the sources of a config before a build."""

import argparse
from typing import TYPE_CHECKING, TypeAlias

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError
from pipeline.project import Project
from queries.redact import redact

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.stages.source_check import SourceSample

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SHOWN = 100  # characters of a caption


def add_parser(subparsers: Subparsers) -> None:
    """Add `wit sources` and its command."""
    sources = subparsers.add_parser("sources", allow_abbrev=False)
    commands = sources.add_subparsers(metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="read the first rows of each source and show what they are",
        description="Read the first rows of each source and print rows, columns, languages, matches, examples, and "
        "what each filter of the config drops. Exit 1 if a source cannot be read.",
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
    from pipeline.stages.source_check import check_sources, pair_filters
    from pipeline.stages.source_files import source_files
    from queries.match import QueryMatcher

    config = project.config
    selection = None
    filters = PairFilters.of(config.filters, project.base_dir).open()
    try:
        selection = PairSelection(QueryMatcher(project.load_allowlist().queries), filters)
    except ConfigError as error:
        print(f"matches are not counted, and no filters are tried: {error}")
    files = source_files(config, project.base_dir, project.workspace)
    samples = []
    for found in check_sources(files, config.pairs, PagePolicy.of(config.fetch), selection, args.rows):
        _show(found, pair_filters(config.filters) if selection is not None else None)
        samples.append(found)
    if selection is not None:
        _show_pool(samples, config)
    return 1 if any(found.problem for found in samples) else 0


def _show(found: "SourceSample", filters: list[tuple[str, str]] | None) -> None:
    """Print one source; `filters` are None if there is no allowlist to match."""
    name = found.source.preset or ", ".join(redact(path) for path in found.source.paths) or found.source.crawls
    print(f"{found.source.kind} {name}: {found.files:,} files")
    print(f"  rows read      {found.rows:,}, of which {_share(found.candidates, found.rows)} have a URL and a text")
    for reason, count in found.dropped.most_common():
        print(f"    {reason:<22} {_share(count, found.rows)}")
    if filters is not None:
        print(f"  match a query  {_share(found.matched, found.candidates)}")
        _show_filters(found, filters)
    if found.columns:
        print(f"  columns        {', '.join(found.columns)}")
    if found.extra:
        print(f"  kept           {', '.join(found.extra)}")
    for title, counter in (("languages", found.languages), ("texts", found.fields)):
        top = ", ".join(f"{what} {count / found.candidates:.0%}" for what, count in counter.most_common(6))
        print(f"  {title:<14} {top or '-'}")
    print(f"  hosts          {len(found.hosts):,}")
    for caption, url in found.examples:
        print(f"    {_shortened(caption)}\n      {redact(url)}")
    if found.problem:
        print(f"  PROBLEM        {found.problem}")


def _show_filters(found: "SourceSample", filters: list[tuple[str, str]]) -> None:
    """Print what each filter on single pairs drops of those that match, also where that is nothing."""
    for name, reason in filters:
        counts = {
            r: n for r, n in found.filtered.items() if r == reason or (reason == "python:" and r.startswith(reason))
        }
        names = ", ".join(sorted(counts)) or ("" if reason == "python:" else reason)
        print(f"    {redact(name):<34} {_share(sum(counts.values()), found.matched):>16} {names}")


def _show_pool(samples: "list[SourceSample]", config: "Config") -> None:
    """Print what is decided over all sources together, and what only images decide."""
    from pipeline.stages.source_check import later_filters, pool_effects

    for number, effect in enumerate(pool_effects(samples, config.filters, config.seed)):
        if number == 0:
            print(f"over the whole pool, estimated on these {effect.pairs:,} pairs alone (the whole pool has more)")
        print(f"    {effect.filter:<34} {_share(effect.dropped, effect.pairs):>16} {effect.reason}")
        for caption, count in effect.examples:
            print(f"      {count:,} x {_shortened(caption)}")
    if later := later_filters(config):
        print(f"decided once there are images: {', '.join(later)}")


def _shortened(caption: str) -> str:
    return caption if len(caption) <= _SHOWN else f"{caption[: _SHOWN - 1]}…"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"
