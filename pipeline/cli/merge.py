"""`wit merge`: one set of two or more workspaces that were built elsewhere by the same recipe."""

import argparse
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    merge = commands.add_parser(
        "merge",
        help="make one set of workspaces that were built elsewhere by the same recipe",
        description="Build a set, in the config's workspace, from the pairs and images of other finished workspaces, "
        "not from the config's sources. The caps are exact over all of them, duplicates between them are found, and "
        "nothing is requested. All must have the config's recipe, other sources excepted.",
        epilog="Run the same command again to resume. Options that are not listed here go to Beam.",
        allow_abbrev=False,
    )
    merge.add_argument("others", nargs="+", metavar="WORKSPACE", help="a finished workspace: a folder or URL")
    merge.add_argument(
        "-c", "--config", type=Path, default=Path("wit.toml"), help="the config of the new set (default: wit.toml)"
    )
    merge.add_argument("--quiet", action="store_true", help="do not show progress")
    merge.set_defaults(func=_merge, takes_beam_options=True)


def _merge(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    from pipeline.beam.options import parse_beam_options
    from pipeline.build import run_build
    from pipeline.cli.status import print_account
    from pipeline.engine.progress import Progress

    if len(args.others) < 2:
        raise ConfigError("give two workspaces or more to merge")
    others = [other if "://" in other else str(Path(other).resolve()) for other in args.others]
    if project.workspace.root in others:
        raise ConfigError(f"workspace = {project.config.workspace!r} is one of those to merge: choose a new one")
    progress = Progress(None) if args.quiet else Progress()
    print_account(run_build(project, parse_beam_options(args.beam_args), progress=progress, merge=others))
    return 0
