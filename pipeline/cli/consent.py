"""`wit consent recheck`: may the images of a finished set still be used?"""

import argparse
from pathlib import Path

from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    consent = commands.add_parser("consent", help="ask again whether the images of a finished set may be used")
    actions = consent.add_subparsers(metavar="ACTION", required=True)
    recheck = actions.add_parser(
        "recheck",
        help="list the images that may no longer be used",
        description="Ask for robots.txt, headers and image files again, as politely as `wit build`, and write the URLs "
        "that are refused now to consent/withdrawn.txt, a block list for fetch.consent.block_urls. With a config whose "
        "[fetch.consent] is stricter, the stricter rules hold.",
    )
    recheck.add_argument("-c", "--config", type=Path, default=Path("wit.toml"), help="default: wit.toml")
    recheck.add_argument(
        "--from-record",
        action="store_true",
        help="ask nobody: list the images that a signal refused which was switched off when they were fetched",
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
        print("add it to fetch.consent.block_urls and run `wit build`: the pairs leave the set")
    return 0
