"""`wit why`: the outcome of one pair at every stage, and when and how its consent was checked."""

import argparse
import json

from pipeline.cli.arguments import add_config
from pipeline.errors import UserError
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    why = commands.add_parser(
        "why",
        help="show the path of one pair through all stages, and its consent record",
        description="Print what became of pairs at every stage, with the query, the rule or the neighbour that "
        "decided, and their record of consent. Everything comes from the workspace's files.",
        allow_abbrev=False,
    )
    why.add_argument(
        "wanted",
        metavar="UID|URL|SHA256|EVAL-ID",
        help="a uid, the URL of an image, the SHA-256 of an image file, or an id of an evaluation set's example",
    )
    add_config(why)
    why.add_argument("--json", action="store_true", help="print one JSON object a line")
    why.set_defaults(func=_why)


def _why(args: argparse.Namespace) -> int:
    from pipeline.stages.trace import Trace

    project = Project.load(args.config)
    trace = Trace(project.workspace, project.config, project.load_allowlist())
    count = 0
    for count, record in enumerate(trace.find(args.wanted), 1):
        if args.json:
            print(json.dumps(record, default=str))
            continue
        print("\n" if count > 1 else "", end="")
        for name, value in record.items():
            if value is not None and value != "":
                shown = "".join(c if c.isprintable() else " " for c in str(value))
                print(f"{name:24} {shown}")
    if trace.taken_down(args.wanted):
        print("it was taken down, and later builds leave it out")
        count += 1
    if not count:
        raise UserError(f"{args.wanted}: no matched pair has this uid, URL or SHA-256, and no overlap has this eval id")
    return 0
