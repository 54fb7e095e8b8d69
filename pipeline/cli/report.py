"""`wit report`: write report/ again, or verify one."""

import argparse
import sys
from pathlib import Path

from pipeline.cli.arguments import add_config, add_reviews
from pipeline.errors import UserError
from pipeline.project import Project
from queries.redact import redact


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    report = commands.add_parser(
        "report",
        help="write report/ again from a finished build; `wit report verify FOLDER` checks a report",
        description="Write report/ again from a finished build. `wit report verify FOLDER` derives every number of a "
        "report (of a build or of `wit overlap`) from the tables published in its folder, and names those that differ.",
    )
    report.add_argument("action", nargs="?", choices=["write", "verify"], default="write")
    report.add_argument("folder", nargs="?", type=Path, help="verify: the report's folder")
    add_reviews(report)
    add_config(report)
    report.set_defaults(func=_report)


def _report(args: argparse.Namespace) -> int:
    if args.action == "verify":
        return _verify_report(args.folder)
    if args.folder:
        raise UserError("wit report write: takes no folder; it writes report/ of the workspace in the config")
    project = Project.load(args.config)
    from pipeline.stages.report import write_reports

    print(redact(write_reports(project.workspace, project.config, project.load_allowlist(), args.reviews)))
    return 0


def _verify_report(folder: Path | None) -> int:
    from dedup.verify_report import verify_report

    if folder is None:
        raise UserError("wit report verify: name the report's folder")
    problems = verify_report(folder)
    for problem in problems:
        print(f"wit: {problem}", file=sys.stderr)
    if not problems:
        print(f"{folder}: every number follows from the published tables")
    return 1 if problems else 0
