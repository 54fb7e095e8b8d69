"""`wit verify`: compare all files of a workspace, or of a set of shards, with their checksums."""

import argparse
import sys

from pipeline.cli.arguments import add_config
from pipeline.errors import NOT_WHOLE, ConfigError
from pipeline.project import Project
from queries.redact import redact


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = commands.add_parser(
        "verify",
        help="compare all files with their checksums",
        description="Read every file of a workspace, or of a set of shards, and compare it with the size and SHA-256 "
        "that were recorded when it was written. Exit 6 if one differs.",
        allow_abbrev=False,
    )
    add_config(verify)
    verify.add_argument(
        "--shards", metavar="DIR", help="verify a folder of shards with manifest.json, not a workspace; also a URL"
    )
    verify.add_argument(
        "--discard",
        action="store_true",
        help="delete the damaged files of a workspace: the next build writes them again (fetched/ from the web)",
    )
    verify.set_defaults(func=_verify)


def _verify(args: argparse.Namespace) -> int:
    from pipeline.engine.lock import build_lock
    from pipeline.engine.units import withdraw
    from pipeline.shards.verify import verify_shards, verify_workspace

    if args.shards is not None:
        if args.discard:
            raise ConfigError("--discard works only on a workspace: copy damaged shards again from their source")
        verdict = verify_shards(args.shards)
    else:
        workspace = Project.load(args.config).workspace
        verdict = verify_workspace(workspace)
        if args.discard and verdict.problems:
            with build_lock(workspace):
                for file in verdict.problems:
                    withdraw(workspace, file)
    for file, problem in verdict.problems.items():
        print(redact(f"wit: {file} {problem}"), file=sys.stderr)
    print(f"{verdict.files:,} files, {verdict.bytes:,} bytes: {len(verdict.problems) or 'none'} damaged")
    if verdict.problems and args.shards is None:
        way_out = "run `wit build` to write them again" if args.discard else "add --discard, then run `wit build`"
        print(f"wit: {way_out}", file=sys.stderr)
    return NOT_WHOLE if verdict.problems else 0
