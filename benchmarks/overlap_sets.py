"""Build a dataset that is compared with 35 evaluation sets, and compare the report with the copies that were planted.

    python -m benchmarks.overlap_sets PHOTOS.tar... --out FOLDER [--images 40] [--copies 13] [--strangers 1500]

30 sets are photos of the tars, cut from their folders, and five are rendered or small. Of each set some images are on
the "web" under an edit, all 66 kinds in turn; the other images of the web are photos of the same folders and have no
copy in a set. FOLDER/work/report is the report, FOLDER/found.json the comparison.
"""

import argparse
import itertools
import json
import random
import tarfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.copy_recall import shrunk
from dedup.copies.control import control_image
from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.decode import decode_rgb
from pipeline.beam.options import parse_beam_options
from pipeline.build import run_build
from pipeline.demo.drawing import draw
from pipeline.demo.scenes import COLOURS, SHAPES, Thing, held_out_scenes
from pipeline.engine.progress import Progress
from pipeline.project import Project
from pipeline.shards.tar import TarWriter
from queries.allowlist import import_allowlist

PHOTO_SETS = 30
KINDS = (*EDITS, *UNSEEN_EDITS)
_SEED = 1  # not that of the negative control

_CONFIG = """\
workspace = "work"
seed = 1
[allowlist]
path = "queries.parquet"
[[sources]]
kind = "webdataset"
paths = ["web.tar"]
[balance]
cap = 1000000
[fetch]
parts = 8
min_image_size = 8
[dedup]
near_duplicates = false
detector = "copy"
planted = {planted}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=40, help="of each set")
    parser.add_argument("--copies", type=int, default=13, help="planted of each set")
    parser.add_argument("--strangers", type=int, default=1500)
    parser.add_argument("--plant", type=int, default=3, help="images of each set that measure the recall")
    arguments = parser.parse_args()
    began = time.monotonic()
    planted = make(arguments)
    project = Project.load(arguments.out / "wit.toml")
    run_build(project, parse_beam_options([]), progress=Progress())
    found = compare(arguments.out / "work", planted)
    (arguments.out / "found.json").write_text(json.dumps(found, indent=1))
    print_table(found, arguments.out / "work")
    print(f"{time.monotonic() - began:.0f} s")


def make(arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Write sets, web and config; return, by set, the example that each URL shows."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sets, strangers = choose(arguments.tars, arguments.images, arguments.strangers)
    kinds = itertools.cycle(KINDS)
    planted: dict[str, dict[str, str]] = {}
    with (out / "web.tar").open("wb") as stream, TarWriter(stream) as web:
        key = itertools.count()
        for name, images in sets.items():
            (out / "evals" / name).mkdir(parents=True, exist_ok=True)
            planted[name] = {}
            for number, image in enumerate(images):
                Image.fromarray(image).save(out / "evals" / name / f"{number:04d}.png")
            for number in range(arguments.copies):
                kind = next(kinds)
                url = f"http://web.example/{name}/{number}/{kind.replace(' ', '-').replace('%', '')}.jpg"
                file = edited(kind, images[number], strangers[number % len(strangers)], url)
                _add(web, next(key), file, url)
                planted[name][url] = f"{number:04d}.png"
        for number, image in enumerate(strangers):
            _add(web, next(key), edited("same", image, image, ""), f"http://web.example/stranger/{number}.jpg")
    (out / "queries.txt").write_text("photo\n")
    import_allowlist(str(out / "queries.txt"), str(out / "queries.parquet"))
    tables = "".join(f'[[evals]]\nname = "{name}"\nkind = "folder"\npath = "evals/{name}"\n' for name in sets)
    tables = tables.replace('path = "evals/digits"\n', 'path = "evals/digits"\nmin_probability = 0.998\n')
    (out / "wit.toml").write_text(_CONFIG.format(planted=arguments.plant) + tables)
    return planted


def _add(web: TarWriter, key: int, file: bytes, url: str) -> None:
    web.add(f"{key:06d}.jpg", file)
    web.add(f"{key:06d}.txt", f"photo {key}".encode())
    web.add(f"{key:06d}.json", json.dumps({"url": url}).encode())


def choose(tars: list[Path], images: int, strangers: int) -> tuple[dict[str, list[np.ndarray]], list[np.ndarray]]:
    """Return the sets, and as strangers other photos of the same folders."""
    folders = defaultdict(list)
    for path in tars:
        with tarfile.open(path) as tar:
            names = sorted(m.name for m in tar if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg", ".png")))
        random.Random(path.name).shuffle(names)
        for name in names:
            folders[name.split("/")[0]].append((path, name))
    wanted: dict[tuple[Path, str], str] = {}
    rounds = itertools.cycle(sorted(folders))
    made, tries = 0, 0
    while made < PHOTO_SETS and tries < 10 * PHOTO_SETS:
        folder, tries = next(rounds), tries + 1
        if len(folders[folder]) < 2 * images:
            continue
        for one in folders[folder][:images]:
            wanted[one] = f"{folder.replace('_', '-')}-{made:02d}"
        del folders[folder][:images]
        made += 1
    rest = [one for folder in sorted(folders) for one in folders[folder]]
    random.Random(0).shuffle(rest)
    wanted |= dict.fromkeys(rest[:strangers], "")
    sets: dict[str, list[np.ndarray]] = defaultdict(list)
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if (path, member.name) in wanted:
                    file = tar.extractfile(member)
                    assert file is not None
                    sets[wanted[path, member.name]].append(shrunk(decode_rgb(file.read())))
    others = sets.pop("")
    return dict(sorted(sets.items())) | dict(_rendered(images, others)), others


def _rendered(images: int, photos: list[np.ndarray]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield five sets that are no photos of usual size; the small ones are of strangers that leave the web."""
    yield "abstract", [control_image(number, _SEED) for number in range(images)]
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    yield "shapes", [np.asarray(draw(next(held_out_scenes(thing, _SEED, 1)))) for thing in things[:images]]
    small = [photos.pop() for _ in range(2 * images)]
    yield "small", [cv2.resize(one, (32, 32), interpolation=cv2.INTER_AREA) for one in small[:images]]
    yield "grey", [np.repeat(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY)[:, :, None], 3, 2) for one in small[images:]]
    yield "digits", [_digit(number) for number in range(images)]


def _digit(number: int) -> np.ndarray:
    """Return a digit like those of MNIST: 28 pixels, white on black."""
    chance = random.Random(number)
    canvas = np.zeros((56, 56, 3), np.uint8)
    place = (chance.randint(8, 16), chance.randint(38, 46))
    cv2.putText(canvas, str(number % 10), place, chance.choice((0, 2, 3, 4)), chance.uniform(1, 1.5), (255,) * 3, 4)
    turned = cv2.getRotationMatrix2D((28, 28), chance.uniform(-15, 15), 1)
    return cv2.resize(cv2.warpAffine(canvas, turned, (56, 56)), (28, 28), interpolation=cv2.INTER_AREA)


def compare(work: Path, planted: dict[str, dict[str, str]]) -> list[dict[str, object]]:
    """Return, by set, what was found of the planted copies, what else was found, and what the report says."""
    shards = [pq.read_table(path, columns=["uid", "url"]) for path in sorted((work / "shards").glob("0*.parquet"))]
    url_of = {row["uid"]: row["url"] for table in shards for row in table.to_pylist()}
    told = {one["name"]: one for one in json.loads((work / "report" / "overlap.json").read_text())["sets"]}
    rows = []
    for name, copies in planted.items():
        matches = pq.read_table(work / "dedup" / "overlap" / f"{name}.parquet").to_pylist()
        pairs = {(url_of[row["uid"]], row["eval_id"]) for row in matches}
        report = told[name]
        rows.append(
            {
                "set": name,
                "images": report["indexed"],
                "planted": len(copies),
                "found": len(pairs & set(copies.items())),
                "false": sorted(pairs - set(copies.items())),
                "reported": report["overlap"],
                "interval": [report["share"]["low"], report["share"]["high"]],
                "recall": report["recall"],
                "corrected": report["corrected_fraction"],
                "missed": sorted(url for url, example in copies.items() if (url, example) not in pairs),
            }
        )
    return rows


def print_table(found: list[dict[str, object]], work: Path) -> None:
    table = Table(title="planted and found")
    for name in ("set", "images", "planted", "found", "false", "corrected", "interval", "true fraction inside"):
        table.add_column(name, justify="left" if name == "set" else "right")
    inside = 0
    for row in found:
        true = row["planted"] / row["images"]
        value, low, high = row["corrected"] or (float("nan"),) * 3
        inside += low <= true <= high
        cells = (row["images"], row["planted"], row["found"], len(row["false"]))
        table.add_row(
            row["set"],
            *map(str, cells),
            f"{value:.3f}",
            f"{low:.3f} – {high:.3f}",
            "yes" if low <= true <= high else "no",
        )
    console = Console(width=140)
    console.print(table)
    sums = {name: sum(row[name] for row in found) for name in ("planted", "found")}
    false = sum(len(row["false"]) for row in found)
    control = json.loads((work / "report" / "overlap.json").read_text())["control"]
    console.print(
        f"{len(found)} sets: {sums['found']} of {sums['planted']} planted copies found, {false} other matches; "
        f"the true fraction lies in {inside} of the intervals; negative control: {control['matches']} matches"
    )


if __name__ == "__main__":
    main()
