"""`wit overlap A B`: report the images of A that are also in B, for any two sets of images, without a config."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dedup.errors import DedupError
from pipeline.cli.arguments import add_reviews
from pipeline.errors import UserError

if TYPE_CHECKING:
    from dedup.compare_sets import Compared, Settings
    from dedup.copies.detector import Detector

_MAX_DISTANCE_BITS = 31


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "overlap",
        help="report the overlap of any two sets of images",
        description="Write a report of the images of A that are also in B. Each is a folder of images, or a folder or "
        "file of WebDataset tars or of Parquet with encoded images (the layout of Hugging Face datasets).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "a", type=Path, metavar="A", help="the set whose images are searched, such as an evaluation set"
    )
    parser.add_argument("b", type=Path, metavar="B", help="the set to search in, such as training data")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--detector",
        default="copy",
        help='detector of edited copies: "copy" (default), an .onnx model (docs/copies.md), or "pdq" for none',
    )
    parser.add_argument(
        "--max-distance-bits",
        type=int,
        choices=range(32),
        metavar="BITS",
        help="maximum PDQ distance of a match, 0 to 31 (default: 31, or that of the registered set that A is named as)",
    )
    parser.add_argument(
        "--min-probability",
        type=float,
        metavar="P",
        help="minimum probability of an edited copy, 0.5 to 1 (default: 0.85, or that of the registered set); "
        "look-alikes such as digits need 0.998",
    )
    parser.add_argument(
        "--plant",
        type=int,
        default=0,
        metavar="N",
        help="measure the recall with copies of N images of A, each edited in 66 ways",
    )
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help='column of encoded images in Parquet files (default: "image", or the first of {bytes, path})',
    )
    add_reviews(parser)
    parser.set_defaults(func=_overlap)


def _overlap(args: argparse.Namespace) -> int:
    from dedup.compare_sets import compare_sets  # slow to import
    from dedup.eval_sets.layout import Source

    try:
        settings = _settings(args)
        first, second = (Source.of(path, args.image_column) for path in (args.a, args.b))
        if args.image_column and "parquet" not in (first.kind, second.kind):
            raise UserError(f"--image-column {args.image_column}: neither {args.a} nor {args.b} is Parquet")
        with _progress() as on_progress:
            compared = compare_sets(first, second, args.out, settings, on_progress)
    except (FileNotFoundError, DedupError) as error:
        raise UserError(str(error)) from error
    _print(args, compared)
    return 0


def _settings(args: argparse.Namespace) -> "Settings":
    from dedup.compare_sets import Settings
    from dedup.copies.verify import MIN_PROBABILITY
    from dedup.eval_sets import threshold_bits, threshold_probability
    from dedup.reviews import Reviews

    bits, least = args.max_distance_bits, args.min_probability
    if least is not None and not 0.5 <= least <= 1:
        raise UserError(f"--min-probability {least}: it must lie between 0.5 and 1")
    if args.plant < 0:
        raise UserError(f"--plant {args.plant}: it must be 0 or more")
    name = args.a.resolve().name
    return Settings(
        _load(args.detector),
        Path(args.detector).name,
        max_distance_bits=threshold_bits(name, _MAX_DISTANCE_BITS) if bits is None else bits,
        min_probability=threshold_probability(name, MIN_PROBABILITY) if least is None else least,
        planted=args.plant,
        reviews=Reviews.read(args.reviews),
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Yield a function that shows what is done and to how many images, if somebody looks at it."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,.0f} images"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda step, images: progress.update(task, description=step, completed=images)


def _print(args: argparse.Namespace, compared: "Compared") -> None:
    from dedup.report import percent

    report = compared.report
    lost = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in compared.left_out.items())
    print(f"{report.summary.overlap:,} of {report.indexed:,} images of {args.a} are in {args.b} ", end="")
    print(f"({percent(report.share.value)}; {compared.images:,} images{f'; left out: {lost}' if lost else ''})")
    if report.left_out:
        unread = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in report.left_out.items())
        print(f"left out of {args.a}: {unread}")
    if report.recall and report.corrected:
        tuned, unseen = (percent(one.value) for one in (report.recall.tuned, report.recall.unseen))
        value, low, high = map(percent, report.corrected)
        print(f"recall of planted edits: {tuned}, of kinds never tuned on {unseen}; corrected {value} ({low} – {high})")
    if args.reviews and not report.judged:
        print("none of the reviews is of a pair that this report shows: its precision is unknown")
    elif report.judged:
        precision = report.judged.precision
        told = f"{percent(precision.value)} ({percent(precision.low)} – {percent(precision.high)})"
        several = report.judged.judged_by_several
        agreed = f"; judges agree on {report.judged.agreed} of {several} pairs" if several else ""
        print(f"precision as judged: {told}{agreed}")
    if compared.control.matches:
        print(f"negative control: {compared.control.matches} rendered images matched, so some matches are false")
    print(f"{args.out / 'index.html'}")


def _load(name: str) -> "Detector | None":
    from dedup.copies.detector import Detector, packaged_detector

    if name == "pdq":
        return None
    return Detector.load(packaged_detector() if name == "copy" else Path(name))
