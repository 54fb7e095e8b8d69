"""`wit takedown`: pairs leave a finished set, and do not come back."""

import argparse
from typing import TYPE_CHECKING

from pipeline.cli.arguments import add_config
from pipeline.errors import ConfigError
from pipeline.project import Project

if TYPE_CHECKING:
    from pipeline.stages.takedown import Request

_EPILOG = """\
FILE has one entry a line; empty lines and lines that begin with # are skipped:
  https://host.example/a.jpg      one URL, with http or https, and all its captions
  host.example                    a domain, with its subdomains
  uid:0123...                     one pair; other captions of its image stay
  sha256:0123...                  an image, by the SHA-256 of the file as downloaded
  pdq:0123...  pdq:0123... 12     images within --radius bits, or 12, of a PDQ hash
  image:photo.jpg                 an image file beside FILE, and images within --radius bits of it

Run the same command again to resume. Options that are not listed here go to Beam.
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    takedown = commands.add_parser(
        "takedown",
        help="take URLs, domains, pairs or images out of a finished dataset",
        description="Take URLs, domains, pairs or images out of a finished dataset. Only the shards that lose pairs "
        "are written again, with the manifest and the report. Later builds obey the entries, which the workspace keeps "
        "as hashes. consent/takedowns.jsonl records when entries came, and of what kind.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    takedown.add_argument("file", metavar="FILE", help="the list of what to take down")
    add_config(takedown)
    takedown.add_argument(
        "--shards", metavar="DIR", help="take from a folder of shards with manifest.json, not from a workspace"
    )
    takedown.add_argument(
        "--radius",
        type=_bits,
        default=31,
        metavar="BITS",
        help="how many of the 256 bits of the PDQ hash may differ from an image's (default: 31)",
    )
    takedown.add_argument(
        "--refill",
        action="store_true",
        help="replace pairs of queries that fall below the cap by other fetched pairs; runs the deduplication "
        "stage again",
    )
    takedown.add_argument("--dry-run", action="store_true", help="print what would be taken out, and change nothing")
    takedown.add_argument("--quiet", action="store_true", help="do not show progress")
    takedown.set_defaults(func=_takedown, takes_beam_options=True)


def _bits(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 63):
        raise argparse.ArgumentTypeError(f"not a number of bits from 0 to 63: {text!r}")
    return int(text)


def _takedown(args: argparse.Namespace) -> int:
    from pipeline.engine.progress import Progress
    from pipeline.stages.takedown import describe_entries, read_request

    if args.shards is not None and args.beam_args:
        raise ConfigError(f"--shards runs in this process, without Beam: {args.beam_args[0]} has no meaning")
    if args.shards is not None and args.refill:
        raise ConfigError("--refill needs the workspace: it takes other pairs from what was fetched; omit --shards")
    request = read_request(args.file, args.radius)
    for note in request.notes:
        print(f"wit: {note}")
    print(f"{args.file}: {describe_entries(request.counts)}")
    if args.dry_run:
        return _dry_run(args, request)
    progress = Progress(None) if args.quiet else Progress()
    if args.shards is not None:
        from pipeline.stages.takedown_shards import take_from_shards

        pairs, shards, of_shards = take_from_shards(args.shards, request, progress)
    else:
        from pipeline.beam.options import parse_beam_options
        from pipeline.build import run_takedown

        project, options = Project.load(args.config), parse_beam_options(args.beam_args)
        done = run_takedown(project, request, options, progress, refill=args.refill)
        pairs, shards, of_shards = done.pairs, done.shards, done.of_shards
    print(f"{pairs:,} pairs left the dataset; {shards:,} of {of_shards:,} shards were written again")
    return 0


def _dry_run(args: argparse.Namespace, request: "Request") -> int:
    from pipeline.errors import UserError
    from pipeline.shards.manifest import read_manifest
    from pipeline.stages.takedown_shards import count_listed

    folder = args.shards or f"{Project.load(args.config).workspace.root}/shards"
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise UserError(f"{folder}: there is no finished dataset to take pairs out of") from None
    stems = [shard.path.rsplit("/", 1)[1].removesuffix(".tar") for shard in manifest.shards]
    found = count_listed(folder, stems, request)
    print(f"{sum(found.values()):,} pairs would leave the dataset, from {len(found):,} of {len(stems):,} shards")
    return 0
