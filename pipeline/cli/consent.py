"""`wit consent recheck`: may the images of a finished set still be used?"""

import argparse

from pipeline.cli.arguments import add_config
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    consent = commands.add_parser("consent", help="check again whether the images of a finished dataset may be used")
    actions = consent.add_subparsers(metavar="ACTION", required=True)
    recheck = actions.add_parser(
        "recheck",
        help="list the images that may no longer be used",
        description="Request robots.txt, headers and image files again, with the rate limits of `wit build`, and write "
        "the URLs that are refused now to consent/withdrawn.txt, a list for `wit takedown`. If the "
        "config's [fetch.consent] is stricter than before, the stricter rules apply.",
    )
    add_config(recheck)
    recheck.add_argument(
        "--from-record",
        action="store_true",
        help="send no requests: list the images that a signal refused while it was switched off",
    )
    recheck.set_defaults(func=_recheck)


def _recheck(args: argparse.Namespace) -> int:
    from pipeline.engine.lock import build_lock
    from pipeline.engine.progress import Progress
    from pipeline.stages.recheck import recheck_live, recheck_record, write_withdrawn

    project = Project.load(args.config)
    with build_lock(project.workspace):
        if args.from_record:
            urls = recheck_record(project.workspace)
        else:
            urls = recheck_live(project.workspace, project.config, project.base_dir, Progress())
        path = write_withdrawn(project.workspace, urls)
    print(f"{len(urls):,} images may no longer be used: {path}")
    if urls:
        print(f"remove them from the dataset with `wit takedown {path} -c {args.config}`")
    return 0
