"""`wit build`: run the stages."""

import argparse
import logging
import sys

from pipeline.cli import status as cli_status
from pipeline.cli.arguments import add_config
from pipeline.project import STAGES, Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = commands.add_parser(
        "build",
        help="build the dataset; run it again to resume",
        description="Run the stages in order. Work that is done with the same configuration is skipped.",
        epilog="All other options are passed to Beam, for example --runner SparkRunner --spark_master_url local[4], or "
        "--direct_running_mode multi_processing --direct_num_workers 8. Unknown options are an error.",
        allow_abbrev=False,
    )
    add_config(build)
    build.add_argument("--to", choices=STAGES, default=STAGES[-1], help="the last stage to run (default: report)")
    build.add_argument(
        "--refetch",
        action="store_true",
        help="fetch again everything that was fetched for another plan or with other settings",
    )
    build.add_argument(
        "--retry",
        metavar="REASONS",
        help="request again what failed for these reasons, separated by commas, such as timeout,dns_failed",
    )
    build.add_argument(
        "--retry-older-than",
        metavar="TIME",
        default="1h",
        help="with --retry: only failures at least this old, such as 12h or 7d (default: 1h)",
    )
    build.add_argument(
        "--dry-run",
        "--dry_run",
        action="store_true",
        help="print the stages, machines, memory, disk, network and cost of the build, and end; no request is sent",
    )
    build.add_argument("--quiet", action="store_true", help="do not show progress")
    build.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how progress and warnings are written to stderr; json: one object a line, for programs",
    )
    build.set_defaults(func=_build, takes_beam_options=True)


def _build(args: argparse.Namespace) -> int:
    project = Project.load(args.config)  # before Beam, which takes seconds to import
    from pipeline.beam.options import parse_beam_options
    from pipeline.build import check_paths, run_build
    from pipeline.engine.progress import Progress
    from pipeline.fetching.retry import Retry

    retry = Retry.parse(args.retry, args.retry_older_than) if args.retry is not None else None
    options = parse_beam_options(args.beam_args)
    check_paths(project, options)
    if args.dry_run:
        from pipeline.cli.dry_run import print_dry_run

        print_dry_run(project, options, STAGES[: STAGES.index(args.to) + 1])
        return 0
    if args.log_format == "json":
        _warn_in_json()
    _warn_of_this_machine(project)
    progress = Progress(None) if args.quiet else Progress(sys.stderr, as_json=args.log_format == "json")
    account = run_build(project, options, to=args.to, refetch=args.refetch, retry=retry, progress=progress)
    cli_status.print_account(account)
    if args.to == STAGES[-1]:
        from pipeline.engine.units import add_counts, read_markers
        from pipeline.stages.forecast import compare_with_outcome

        fetched = add_counts(read_markers(project.workspace, "fetched").values())
        for line in compare_with_outcome(project.workspace, fetched):
            print(line)
    return 0


def _warn_in_json() -> None:
    from pipeline.engine.json_log import JsonFormatter

    for handler in logging.getLogger("pipeline").handlers:
        handler.setFormatter(JsonFormatter())


def _warn_of_this_machine(project: Project) -> None:
    from pipeline.stages.doctor import Verdict, quick_checks

    for finding in quick_checks(project):
        if finding.verdict in (Verdict.WARNING, Verdict.FAILED):
            logging.getLogger("pipeline").warning("%s: %s: %s", finding.check, finding.found, finding.advice)
