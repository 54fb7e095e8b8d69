"""`wit overlap A B`: report the images of A that are also in B, for any two sets of images, without a config."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dedup.errors import DedupError
from pipeline.errors import UserError

if TYPE_CHECKING:
    from dedup.copies.detector import Detector


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
        default=31,
        choices=range(32),
        metavar="BITS",
        help="maximum PDQ distance of a match, 0 to 31 (default: 31)",
    )
    parser.add_argument(
        "--min-probability",
        type=float,
        metavar="P",
        help="minimum probability of an edited copy, 0.5 to 1 (default: 0.85); look-alikes such as digits need 0.998",
    )
    parser.add_argument(
        "--plant",
        type=int,
        default=0,
        metavar="N",
        help="measure the recall with copies of N images of A, each edited in 66 ways",
    )
    parser.add_argument(
        "--reviews", nargs="+", type=Path, default=[], metavar="FILE", help="reviews that the page saved: its precision"
    )
    parser.set_defaults(func=_overlap)


def _overlap(args: argparse.Namespace) -> int:
    from dedup.compare_sets import Settings, Source, compare_sets  # slow to import
    from dedup.report import percent

    try:
        detector = _load(args.detector)
        if args.min_probability is not None and not 0.5 <= args.min_probability <= 1:
            raise UserError(f"--min-probability {args.min_probability}: it must lie between 0.5 and 1")
        least = {} if args.min_probability is None else {"min_probability": args.min_probability}
        settings = Settings(
            detector,
            Path(args.detector).name,
            max_distance_bits=args.max_distance_bits,
            planted=args.plant,
            reviews=tuple(args.reviews),
            **least,
        )
        compared = compare_sets(Source.of(args.a), Source.of(args.b), args.out, settings)
    except (FileNotFoundError, DedupError) as error:
        raise UserError(str(error)) from error
    report = compared.report
    lost = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in compared.left_out.items())
    print(f"{report.summary.overlap:,} of {report.indexed:,} images of {args.a} are in {args.b} ", end="")
    print(f"({percent(report.share.value)}; {compared.images:,} images{f'; left out: {lost}' if lost else ''})")
    if compared.control.matches:
        print(f"negative control: {compared.control.matches} rendered images matched, so some matches are false")
    print(f"{args.out / 'index.html'}")
    return 0


def _load(name: str) -> "Detector | None":
    from dedup.copies.detector import Detector, packaged_detector

    if name == "pdq":
        return None
    return Detector.load(packaged_detector() if name == "copy" else Path(name))
