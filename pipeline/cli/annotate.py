"""`wit annotate`: new columns of samples, as Parquet beside the shards."""

import argparse
from pathlib import Path

from pipeline.cli.arguments import add_config
from pipeline.project import Project


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    annotate = commands.add_parser(
        "annotate",
        help="add columns (captions, scores, labels, embeddings) to the samples of a finished dataset",
        description="Join Parquet tables by their column uid to the samples of a finished dataset, and write "
        "annotations/NAME/, one table for each shard, in its order. Tars and tables of the set stay as they are.",
        epilog="Run the same command again to resume, and after a build that changed shards. Options that are not "
        "listed here go to Beam.",
        allow_abbrev=False,
    )
    annotate.add_argument("name", metavar="NAME", help="name of this group of columns, such as aesthetic")
    annotate.add_argument(
        "files", nargs="+", metavar="FILE", help="Parquet tables with a column uid: paths or globs, URLs"
    )
    annotate.add_argument("--columns", nargs="+", default=[], metavar="COLUMN", help="columns to take (default: all)")
    add_config(annotate)
    annotate.add_argument("--quiet", action="store_true", help="do not show progress")
    annotate.set_defaults(func=_annotate, takes_beam_options=True)


def _annotate(args: argparse.Namespace) -> int:
    project = Project.load(args.config)
    from pipeline.beam.options import parse_beam_options
    from pipeline.engine.lock import build_lock
    from pipeline.engine.progress import Progress
    from pipeline.engine.run import Build
    from pipeline.paths import expand_paths
    from pipeline.stages.annotate import run_annotate

    options = parse_beam_options(args.beam_args)
    tables = expand_paths(args.files, Path(), "FILE")
    progress = Progress(None) if args.quiet else Progress()
    run = project.config.run
    build = Build(project.workspace, options, progress, run.min_free_bytes, run.memory_bytes)
    with build_lock(project.workspace):
        done = run_annotate(build, args.name, tables, args.columns)
    share = f"{done.annotated / done.samples:.1%}" if done.samples else "none"
    print(f"{args.name}: {done.annotated:,} of {done.samples:,} samples ({share}) from {done.rows:,} rows")
    return 0
