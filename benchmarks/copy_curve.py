"""Measure what each checkpoint of a copy detector's training finds: recall against the number of pairs seen.

    python -m benchmarks.copy_curve TAR... --checkpoints FOLDER/pairs-*.pt [--bases 40] [--out FILE.json]

Photos and edits are those of `benchmarks.copy_recall`, and the same for all checkpoints. A checkpoint's threshold is
the score that one pair of strangers in 100,000 reaches; "first": the original photo is the nearest. The last line
extrapolates the mean recall linearly in the logarithm of the pairs, from the checkpoints at a rate of 0 if there are
two or more.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.copy_recall import NAMES, Photos, detector_similarity, make_photos
from dedup.copies.detector import Detector
from dedup.copies.edits import EDITS, UNSEEN_EDITS
from trainer.copies.export import export
from trainer.copies.network import CopyNetwork

SHOWN = ("crop 80%", "crop 60%", "crop 50%", "rotate 8", "rotate 90", "screenshot", "covered 50% side", "collage half")
RATE = 1e-5
AT = f"at {RATE:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--checkpoints", nargs="+", type=Path, required=True)
    parser.add_argument("--bases", type=int, default=40)
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="photos that are there twice")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = make_photos(arguments.tars, arguments.bases, 99, set(arguments.leave_out))
    strangers = len(photos.queries) * (len(photos.references) - 2)
    print(f"{len(photos.references)} references, {len(photos.queries)} edited photos, {strangers:,} pairs of strangers")
    points = sorted((measured(path, photos) for path in arguments.checkpoints), key=lambda point: point["pairs"])
    show(points)
    if arguments.out:
        arguments.out.write_text(json.dumps(points, indent=1))


def measured(checkpoint: Path, photos: Photos) -> dict[str, object]:
    """Return the pairs seen, whether the learning rate is 0, and the recall of each kind."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    recipe = content["recipe"]
    left = 1 - content["pairs"] / recipe["pairs"]
    similarity = detector_similarity(exported(content), photos, {})
    rows = np.arange(len(photos.queries))
    own = similarity[rows, photos.own].copy()
    similarity[rows, photos.own] = similarity[rows, photos.other] = -1
    point: dict[str, object] = {"pairs": content["pairs"], "finished": left < 0.001}
    strangers = similarity.ravel()
    found = {AT: own > np.quantile(strangers, 1 - RATE), "first": own > similarity.max(1)}
    for name, hits in found.items():
        recall = {kind: float(hits[photos.kinds == number].mean()) for number, kind in enumerate(NAMES)}
        recall["mean of 56"] = float(np.mean([recall[kind] for kind in EDITS]))
        recall["mean of 10 unseen"] = float(np.mean([recall[kind] for kind in UNSEEN_EDITS]))
        point[name] = recall
    return point


def exported(content: dict[str, object]) -> Detector:
    network = CopyNetwork()
    network.load_state_dict(content["network"])
    side = content["recipe"]["side"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.onnx"
        export(network, side, {"wit.side": str(side), "wit.propose": "0.5", "wit.sure": "1.0"}, path)
        return Detector.load(path)


def show(points: list[dict[str, object]]) -> None:
    columns = [(mean, at) for mean in ("mean of 56", "mean of 10 unseen") for at in (AT, "first")]
    table = Table(title="recall against pairs seen")
    for name in ("pairs", "rate is 0", *(", ".join(column) for column in columns), *SHOWN):
        table.add_column(name, justify="right")
    for point in points:
        means = [f"{point[at][mean]:.3f}" for mean, at in columns]
        kinds = [f"{point[AT][kind]:.2f}" for kind in SHOWN]
        table.add_row(f"{point['pairs']:,}", "yes" if point["finished"] else "no", *means, *kinds)
    Console(width=220).print(table)
    ends = [point for point in points if point["finished"]]
    fitted = ends if len(ends) > 1 else points
    seen = np.log10([point["pairs"] for point in fitted])
    slope, at_one = np.polyfit(seen, [point[AT]["mean of 56"] for point in fitted], 1)
    told = ", ".join(f"{pairs:.0e} pairs {min(1, at_one + slope * np.log10(pairs)):.2f}" for pairs in (1e6, 3e6, 1e7))
    print(f"extrapolated mean of 56: {slope:.3f} for ten times as many pairs; {told}")


if __name__ == "__main__":
    main()
