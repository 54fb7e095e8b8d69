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
    parser.add_argument("--edited", type=int, default=50, help="photos that are edited")
    parser.add_argument("--spread", type=float, default=0.5)
    parser.add_argument("--queries", type=int, default=1_000, help="for each cosine")
    parser.add_argument("--searched", type=int, nargs="+", default=[SEARCHED_ROWS], help="vectors, in some tries")
    parser.add_argument("--detector", type=Path, default=packaged_detector())
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    detector = Detector.load(arguments.detector)
    console = Console(width=160)
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
        index = VectorIndex.build(vectors, arguments.views, folder=Path(folder))
        built_s = time.process_time() - began
        chosen = np.linspace(planted, len(vectors) - 1, arguments.queries * len(COSINES)).astype(np.int64)
        near = np.array_split(chosen, len(COSINES))
        drawn = [drawing.near(vectors[rows], cosine) for rows, cosine in zip(near, COSINES, strict=True)]
        asked = Asked.of(known, drawn, chosen, arguments.views)
        console.print(
            f"{len(vectors):,} vectors in {len(index.centres):,} cells; "
            f"built in {built_s:.0f} s of one core; "
            f"{sum(file.stat().st_size for file in Path(folder).glob('*.npy')) / 1e9:.2f} GB of files"
        )
        measure(index, vectors, detector, asked, arguments.searched, console)


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


@dataclass(frozen=True)
class Asked:
    """Queries, the image that each is a copy of, and the queries of each group."""

    queries: np.ndarray
    own: np.ndarray
    groups: dict[str, range]

    @classmethod
    def of(cls, known: Known, drawn: list[np.ndarray], chosen: np.ndarray, views: int) -> "Asked":
        groups, at = {f"{len(known.own):,} edits": range(len(known.own))}, len(known.own)
        for cosine, some in zip(COSINES, drawn, strict=True):
            groups[f"cosine {cosine}"] = range(at, at + len(some))
            at += len(some)
        return cls(np.concatenate([known.queries, *drawn]), np.concatenate([known.own, chosen // views]), groups)


def measure(
    index: VectorIndex, vectors: np.ndarray, detector: Detector, asked: Asked, searched: list[int], console: Console
) -> None:
    """Search for all queries at once, as in a part of fetched images; a full scan is the reference."""
    min_score, queries = detector.score(detector.card.propose), asked.queries
    began = time.process_time()
    exact = scan(vectors, index.views, queries, min_score)
    scan_ms = (time.process_time() - began) / len(queries) * 1000
    copies = {name: {(query, int(asked.own[query])) for query in group} for name, group in asked.groups.items()}
    table = Table(title=f"candidates at {detector.card.propose}, the {MOST} nearest images; of those of a full scan")
    for name in ("vectors compared", "ms a query", *copies, "all candidates"):
        table.add_column(name, justify="right")
    found = [f"{len(some & exact) / len(some):.3f}" for some in copies.values()]
    table.add_row(f"{len(vectors):,}", f"{scan_ms:.2f}", *(f"({share})" for share in found), f"({len(exact):,})")
    index.search(queries, [min_score], MOST)  # reads the files
    for rows in searched:
        probing = replace(index, probes=-(-rows * len(index.centres) // len(index.rows)))
        began = time.process_time()
        pairs = pairs_of(probing.search(queries, [min_score], MOST))
        spent_ms = (time.process_time() - began) / len(queries) * 1000
        shares = [len(some & exact & pairs) / max(1, len(some & exact)) for some in copies.values()]
        shares.append(len(exact & pairs) / max(1, len(exact)))
        table.add_row(f"{rows:,}", f"{spent_ms:.2f}", *(f"{share:.3f}" for share in shares))
    console.print(table, f"{len(queries):,} queries at once; {memory()}")


def scan(vectors: np.ndarray, views: int, queries: np.ndarray, min_score: int) -> set[tuple[int, int]]:
    """Compare all pairs; return the query and image of the `MOST` best of each query."""
    best: list[list[tuple[int, int]]] = [[] for _ in queries]
    step = _BLOCK // views * views
    for at in range(0, len(vectors), step):
        block = vectors[at : at + step]
        found = VectorIndex.build(block, views, searched_rows=step).search(queries, [min_score], MOST)
        for query, image, score in zip(
            found.queries.tolist(), found.images.tolist(), found.scores.tolist(), strict=True
        ):
            best[query] = sorted([*best[query], (-score, at // views + image)])[:MOST]
    return {(query, image) for query, nearest in enumerate(best) for _, image in nearest}


def pairs_of(found: Candidates) -> set[tuple[int, int]]:
    return set(zip(found.queries.tolist(), found.images.tolist(), strict=True))


def memory() -> str:
    facts = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line)
    private, mapped = (int(facts[name].split()[0]) / 1e6 for name in ("RssAnon", "RssFile"))
    return f"{private:.2f} GB of its own in memory, {mapped:.2f} GB mapped"


if __name__ == "__main__":
    main()
