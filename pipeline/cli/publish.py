"""`wit publish`: a finished set on the Hugging Face Hub, or in any folder or store."""

import argparse

from pipeline.cli.arguments import add_config
from pipeline.project import Project
from queries.redact import redact


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    publish = commands.add_parser(
        "publish",
        help="send a finished dataset to the Hugging Face Hub, a folder or a store",
        description="Send the shards, tables, manifest, croissant.json and the data card (as README.md, with the "
        "settings of the Hub's viewer) to hf://datasets/OWNER/NAME (extra [hub]; a new repository is private), or to a "
        "path or URL. Files are compared with their SHA-256 before and after; run it again to resume.",
        allow_abbrev=False,
    )
    publish.add_argument("url", metavar="URL", help="hf://datasets/OWNER/NAME, a folder, or s3://, gs://, hdfs://")
    add_config(publish)
    publish.add_argument("--quiet", action="store_true", help="do not show progress")
    publish.set_defaults(func=_publish)


def _publish(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    from pipeline.engine.progress import Progress
    from pipeline.stages.publish import publish

    done = publish(project.workspace, args.url, Progress(None) if args.quiet else Progress())
    if done.strays:
        print(redact(f"{len(done.strays):,} files there are not of this set, such as {done.strays[0]}: remove them"))
    print(redact(f"{args.url}: {done.sent:,} files sent, {done.bytes:,} bytes; {done.present:,} were there"))
    return 0
