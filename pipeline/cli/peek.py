"""`wit peek`: look at random pairs of a finished set, in the terminal or in a page."""

import argparse
from pathlib import Path

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError
from pipeline.project import Project

_MAX_PAIRS = 1_000


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    peek = commands.add_parser(
        "peek",
        help="show random pairs of the finished set",
        description="Print random pairs of the finished set, or write them with their images into a page.",
        allow_abbrev=False,
    )
    add_config(peek)
    peek.add_argument("-n", "--pairs", type=int, default=20, help="how many pairs (default: 20)")
    peek.add_argument("--seed", type=int, default=0, help="another seed shows other pairs (default: 0)")
    peek.add_argument("--page", type=Path, metavar="FILE", help="write a page with the images, such as peek.html")
    peek.set_defaults(func=_peek)


def _peek(args: argparse.Namespace) -> int:
    if not 1 <= args.pairs <= _MAX_PAIRS:
        raise ConfigError(f"--pairs {args.pairs}: must be from 1 to {_MAX_PAIRS:,}")
    if args.seed < 0:
        raise ConfigError(f"--seed {args.seed}: must be 0 or more")
    project = Project.load(args.config)
    from pipeline.pages import render_page, shorten
    from pipeline.stages.peek import peek

    pairs, total = peek(project.workspace, args.pairs, args.seed, project.load_allowlist().queries)
    if args.page is not None:
        args.page.write_text(render_page("peek.html.j2", pairs=pairs, total=total), encoding="utf-8", errors="replace")
        print(f"{len(pairs)} of {total:,} pairs: {args.page}")
        return 0
    for pair in pairs:
        score = "" if pair["score"] is None else f"  score {pair['score']:.3f}"
        print(shorten(pair["caption"]))
        print(f"  {pair['uid']}  {pair['language']}  {pair['width']} x {pair['height']}{score}")
        print(f"  selected by {shorten(', '.join(pair['queries']))}")
        print(f"  {shorten(pair['url'])}")
    print(f"{len(pairs)} of {total:,} pairs")
    return 0
