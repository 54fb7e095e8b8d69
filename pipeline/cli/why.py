"""`wit why`: the outcome of one pair or URL, and when and how its consent was checked."""

import argparse
from pathlib import Path

from pipeline.errors import UserError
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    why = commands.add_parser(
        "why",
        help="show the outcome and the consent record of one pair",
        description="Print the outcome of one pair or image URL, and its record of consent.",
    )
    why.add_argument("wanted", metavar="UID|URL", help="a uid, or the URL of an image as in the tables")
    why.add_argument("-c", "--config", type=Path, default=Path("wit.toml"), help="the config file (default: wit.toml)")
    why.set_defaults(func=_why)


def _why(args: argparse.Namespace) -> int:
    from pipeline.stages.consent_record import find_records
    from pipeline.web.urls import normalize_url

    project = Project.load(args.config)
    wanted = (normalize_url(args.wanted) or args.wanted) if "/" in args.wanted else args.wanted
    count = 0
    for count, record in enumerate(find_records(project.workspace, wanted), 1):
        print("\n" if count > 1 else "", end="")
        for name, value in record.items():
            if value is not None and value != "":
                shown = "".join(c if c.isprintable() else " " for c in str(value))
                print(f"{name:16} {shown}")
    if not count:
        raise UserError(f"{args.wanted}: no planned pair has this uid or URL")
    return 0
