"""Measure the search among the vectors of many evaluation images: time, memory, and recall against a full scan.

    python -m benchmarks.copy_index PHOTOS.tar... --edits HELD_OUT.tar... [--images 2000000] [--spread 0.5]

Most vectors are simulated: each image lies near a real photo's vector, `--spread` apart (1: only the mean and the
covariance are the photos'), its views around it as those of real photos are. The images of the tars after --edits are
there themselves, and queries are their edits in all ways of `dedup.copies.edits`; more queries lie at known cosines to
a simulated view, in the direction of another image.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.copy_recall import NAMES, shrunk
from benchmarks.copy_recall import images as read_images
from dedup.copies.detector import Detector, packaged_detector, scores
from dedup.copies.edits import edited
from dedup.copies.match import Described, describe_views
from dedup.copies.search import SEARCHED_ROWS, Candidates, VectorIndex
from dedup.copies.views import VIEWS
from dedup.decode import decode_rgb

COSINES = (0.9, 0.8, 0.7, 0.6)
MOST = 3
_BLOCK = 60_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--edits", nargs="+", type=Path, required=True, metavar="TAR")
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--photos", type=int, default=10_000, help="of the first tars, described")
    parser.add_argument("--edited", type=int, default=20, help="photos that are edited")
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--queries", type=int, default=300, help="for each cosine")
    parser.add_argument("--searched", type=int, default=SEARCHED_ROWS)
    parser.add_argument("--detector", type=Path, default=packaged_detector())
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    detector = Detector.load(arguments.detector)
    console = Console(width=120)
    known = Known.read(detector, arguments.edits, arguments.edited, arguments.views)
    drawing = Drawing.fit(
        detector, described(detector, arguments.tars, arguments.photos), known.views, arguments.spread
    )
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        vectors = np.memmap(
            Path(folder) / "vectors",
            np.int8,
            "w+",
            shape=(arguments.images * arguments.views, detector.card.dimensions),
        )
        drawing.fill(vectors, arguments.views)
        planted = len(known.views) * arguments.views
        vectors[:planted] = known.views.reshape(planted, -1)
        console.print(drawing.tail(vectors))
        began = time.process_time()
        index = VectorIndex.build(vectors, arguments.views, folder=Path(folder), searched_rows=arguments.searched)
        built_s = time.process_time() - began
        chosen = np.linspace(planted, len(vectors) - 1, arguments.queries * len(COSINES)).astype(np.int64)
        near = np.array_split(chosen, len(COSINES))
        drawn = [drawing.near(vectors[rows], cosine) for rows, cosine in zip(near, COSINES, strict=True)]
        queries = np.concatenate([known.queries, *drawn])
        own = np.concatenate([known.own, chosen // arguments.views])
        groups = [
            ("edits of photos", 0, len(known.own)),
            *(
                (
                    f"cosine {cosine}",
                    len(known.own) + at * arguments.queries,
                    len(known.own) + (at + 1) * arguments.queries,
                )
                for at, cosine in enumerate(COSINES)
            ),
        ]
        del vectors
        console.print(
            f"{len(index.rows):,} vectors in {len(index.starts) - 1:,} blocks, {index.probes} of them searched; "
            f"built in {built_s:.0f} s of one core; "
            f"{sum(file.stat().st_size for file in Path(folder).glob('*.npy')) / 1e9:.2f} GB of files"
        )
        measure(index, detector, queries, own, groups, console)


def described(detector: Detector, tars: list[Path], count: int) -> np.ndarray:
    """Return the vectors of photos spread over the tars."""
    files = [file for path in tars for _, file in read_images(path)]
    chosen = files[:: max(1, len(files) // count)]
    return detector.describe([detector.square(decode_rgb(file)) for file in chosen]) / np.float32(detector.scale)


@dataclass(frozen=True)
class Known:
    """Photos of sets that the detector was not trained on, and edits of some of them."""

    views: np.ndarray  # (photos, views, dimensions) int8
    queries: np.ndarray  # (n, dimensions) int8: the edits, and their content boxes
    own: np.ndarray  # (n,) the photo of each

    @classmethod
    def read(cls, detector: Detector, tars: list[Path], count: int, views: int) -> "Known":
        files = [file for path in tars for _, file in read_images(path)]
        photos = [shrunk(decode_rgb(file)) for file in islice(files, 0, None, max(1, len(files) // 300))]
        every = describe_views(detector, photos).reshape(len(photos), len(VIEWS), -1)[:, :views]
        chosen = np.linspace(0, len(photos) - 1, count).astype(int).tolist()
        queries, own = [], []
        for place in chosen:
            other = photos[(place * 7919 + 13) % len(photos)]
            web = Described.of(detector, [decode_rgb(edited(name, photos[place], other, str(place))) for name in NAMES])
            queries += [web.whole, web.inner]
            own += [place] * (len(web.whole) + len(web.inner))
        return cls(np.ascontiguousarray(every), np.concatenate(queries), np.array(own))


class Drawing:
    """A distribution of vectors: images around those of photos, and views around images."""

    def __init__(self, detector: Detector, photos: np.ndarray, views: np.ndarray, spread: float) -> None:
        self.scale, self.spread, self.random = detector.scale, spread, np.random.default_rng(0)
        images = views.mean(1)
        self.within = root(np.cov((views - images[:, None]).reshape(-1, views.shape[2]).T))
        shrink = np.sqrt(np.trace(np.cov(images.T)) / np.trace(np.cov(photos.T)))
        self.mean, self.centres = shrink * photos.mean(0), shrink * (photos - photos.mean(0))
        self.between = root(np.cov(self.centres.T))

    @classmethod
    def fit(cls, detector: Detector, photos: np.ndarray, views: np.ndarray, spread: float) -> "Drawing":
        return cls(detector, photos, views / np.float32(detector.scale), spread)

    def images(self, count: int) -> np.ndarray:
        near = self.centres[self.random.integers(0, len(self.centres), count)]
        return self.mean + np.sqrt(1 - self.spread**2) * near + self.spread * (self._normal(count) @ self.between)

    def fill(self, vectors: np.ndarray, views: int) -> None:
        step = _BLOCK // views * views
        for at in range(0, len(vectors), step):
            count = min(step, len(vectors) - at)
            drawn = np.repeat(self.images(count // views), views, axis=0) + self._normal(count) @ self.within
            vectors[at : at + count] = self.quantised(drawn)

    def near(self, vectors: np.ndarray, cosine: float) -> np.ndarray:
        """Return vectors at a cosine to each of these, in directions as images differ."""
        unit = vectors / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        other = self.images(len(unit))
        other -= (other * unit).sum(1, keepdims=True) * unit
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return self.quantised(cosine * unit + np.sqrt(1 - cosine**2) * other)

    def quantised(self, vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.clip(np.rint(unit * self.scale), -127, 127).astype(np.int8)

    def tail(self, vectors: np.ndarray) -> str:
        """Tell how near strangers are, among the photos and among the simulated views."""
        photos = self.quantised(self.centres + self.mean)
        told = []
        for name, some in (("photos", photos[:3000]), ("simulated", vectors[:: len(vectors) // 3000][:3000])):
            cosines = scores(some, photos if name == "photos" else vectors[3 :: len(vectors) // 9000]) / self.scale**2
            cosines = cosines[cosines < 0.98]
            told.append(f"{name} {', '.join(f'{np.quantile(cosines, 1 - 10.0**-k):.2f}' for k in (2, 3, 4, 5))}")
        return f"cosines of strangers that one pair in 100, 1,000, 10,000, 100,000 reaches: {'; '.join(told)}"

    def _normal(self, count: int) -> np.ndarray:
        return self.random.standard_normal((count, len(self.mean)), np.float32)


def root(covariance: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh(covariance)
    return (np.sqrt(np.maximum(values, 0))[:, None] * axes.T).astype(np.float32)


def measure(
    index: VectorIndex,
    detector: Detector,
    queries: np.ndarray,
    own: np.ndarray,
    groups: list[tuple[str, int, int]],
    console: Console,
) -> None:
    """Search for all queries at once; a search in all blocks, which is a scan, is the reference."""
    min_score = detector.score(detector.card.propose)
    index.search(queries[:200], [min_score], MOST)  # reads the files
    began = time.process_time()
    found = index.search(queries, [min_score], MOST)
    spent_ms = (time.process_time() - began) / len(queries) * 1000
    console.print(f"{len(queries):,} queries at once: {spent_ms:.2f} ms each; {memory()}")
    scan = replace(index, centres=index.centres[:, :0])
    began = time.process_time()
    exact = pairs_of(scan.search(queries, [min_score], MOST))
    console.print(f"a scan takes {(time.process_time() - began) / len(queries) * 1000:.0f} ms each")
    pairs = pairs_of(found)
    table = Table(title=f"candidates at {detector.card.propose}, the {MOST} nearest images")
    for name in ("queries", "the copy: scan", "search", "search, of the scan's", "of all the scan's candidates"):
        table.add_column(name, justify="right")
    for name, start, end in groups:
        copies = {(query, int(own[query])) for query in range(start, end)}
        candidates = {pair for pair in exact if start <= pair[0] < end}
        scanned = copies & exact
        table.add_row(
            f"{end - start:,} at {name}" if name.startswith("cosine") else f"{end - start:,} {name}",
            f"{len(scanned) / len(copies):.3f}",
            f"{len(copies & pairs) / len(copies):.3f}",
            f"{len(scanned & pairs) / max(1, len(scanned)):.3f}",
            f"{len(candidates & pairs) / max(1, len(candidates)):.3f} of {len(candidates):,}",
        )
    console.print(table)


def pairs_of(found: Candidates) -> set[tuple[int, int]]:
    return set(zip(found.queries.tolist(), found.images.tolist(), strict=True))


def memory() -> str:
    facts = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    private, mapped = (int(facts[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile"))
    return f"{private:.2f} GB of its own in memory, {mapped:.2f} GB mapped"


if __name__ == "__main__":
    main()
