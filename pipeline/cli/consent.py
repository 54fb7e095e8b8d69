"""`wit consent`: may the images of a finished set still be used? And the public key of signed requests."""

import argparse

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    consent = commands.add_parser(
        "consent",
        help="check again whether the images of a finished dataset may be used; publish the key of signed requests",
    )
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
    directory = actions.add_parser(
        "directory",
        help="print the public key of signed requests, as the file to publish",
        description="Print the JSON Web Key Set to publish at fetch.signature_agent, so that hosts can verify signed "
        "requests. It has the public key only.",
    )
    add_config(directory)
    directory.add_argument(
        "--headers",
        type=int,
        metavar="DAYS",
        help="print the headers that the server sends with the file instead: its type, and a signature which proves "
        "for DAYS days (1 to 366) that the server has the key; some verifiers require it",
    )
    directory.set_defaults(func=_directory)


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


def _directory(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime, timedelta

    from pipeline.fetching.signing import open_signer

    project = Project.load(args.config)
    signer = open_signer(project.config.fetch, project.base_dir)
    if signer is None:
        raise ConfigError(
            'requests are not signed: set fetch.signature_key = "key.pem" and '
            'fetch.signature_agent = "https://example.org", the place where the key is published'
        )
    if args.headers is None:
        print(signer.directory(), end="")
        return 0
    if not 1 <= args.headers <= 366:
        raise ConfigError(f"--headers {args.headers}: must be 1 to 366 days")
    for name, value in signer.directory_headers(datetime.now(UTC), timedelta(days=args.headers)).items():
        print(f"{name}: {value}")
    return 0
