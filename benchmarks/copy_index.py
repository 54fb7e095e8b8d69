"""Measure the search among the vectors of many evaluation images: memory, time, and recall against a full scan.

    python -m benchmarks.copy_index PHOTOS.tar... --images 2000000 [--views 6] [--scratch FOLDER]

The vectors are simulated: drawn from the normal distribution with the mean and covariance of the detector's vectors of
real photos, in groups of views of one image. Queries lie at known cosines to a view. The vectors are a file that is
mapped, as are those of an index on disk.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.copy_recall import images as read_images
from benchmarks.copy_recall import shrunk
from dedup.copies.detector import Detector, packaged_detector, scores
from dedup.copies.match import describe_views
from dedup.copies.search import VectorIndex
from dedup.copies.views import VIEWS
from dedup.decode import decode_rgb

COSINES = (0.6, 0.65, 0.7, 0.8, 0.9)
_BLOCK = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--views", type=int, default=6)
    parser.add_argument("--photos", type=int, default=1000, help="real photos that the distribution is fitted to")
    parser.add_argument("--queries", type=int, default=400, help="for each cosine")
    parser.add_argument("--detector", type=Path, default=packaged_detector())
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    detector = Detector.load(arguments.detector)
    drawing = Drawing.fit(detector, arguments.tars, arguments.photos)
    console = Console(width=120)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        rows = arguments.images * arguments.views
        vectors = np.memmap(Path(folder) / "vectors", np.int8, "w+", shape=(rows, detector.card.dimensions))
        drawing.fill(vectors, arguments.views)
        began, before = time.process_time(), memory_bytes()
        index = VectorIndex.build(vectors, arguments.views)
        built = time.process_time() - began
        assert index.cells is not None, "so few vectors are scanned: give more --images"
        held = sum(array.nbytes for array in vars(index.cells).values())
        console.print(
            f"{rows:,} vectors in {len(index.cells.centres):,} cells: built in {built:.0f} s of one core; "
            f"{held / 1e9:.2f} GB of bits, rows and centres in memory, {vectors.nbytes / 1e9:.2f} GB of vectors mapped "
            f"(peak of the process grew by {(memory_bytes() - before) / 1e9:.2f} GB, mapped pages included)"
        )
        measure(index, drawing, detector, arguments.queries, console)


class Drawing:
    """A distribution of vectors: of an image, and of its views around it."""

    def __init__(self, detector: Detector, mean: np.ndarray, between: np.ndarray, within: np.ndarray) -> None:
        self.scale, self.mean, self.between, self.within = detector.scale, mean, between, within
        self.random = np.random.default_rng(0)

    @classmethod
    def fit(cls, detector: Detector, tars: list[Path], photos: int) -> "Drawing":
        files = (file for path in tars for _, file in read_images(path))
        pictures = [shrunk(decode_rgb(file)) for file, _ in zip(files, range(photos), strict=False)]
        views = describe_views(detector, pictures).reshape(len(pictures), len(VIEWS), -1)[:, :6] / detector.scale
        images = views.mean(1)
        rest = (views - images[:, None]).reshape(-1, views.shape[2])
        print(f"fitted to {len(pictures)} photos; mean cosine of two views {cosine_of_views(views):.2f}")
        return cls(detector, images.mean(0), root(np.cov(images.T)), root(np.cov(rest.T)))

    def fill(self, vectors: np.ndarray, views: int) -> None:
        step = _BLOCK // views * views
        for at in range(0, len(vectors), step):
            count = min(step, len(vectors) - at) // views
            image = self.mean + self._normal(count) @ self.between
            drawn = image[:, None] + self._normal(count * views).reshape(count, views, -1) @ self.within
            vectors[at : at + count * views] = self.quantised(drawn.reshape(count * views, -1))

    def near(self, vectors: np.ndarray, cosine: float) -> np.ndarray:
        """Return vectors at a cosine to each of these, in directions as images differ."""
        unit = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        other = self.mean + self._normal(len(unit)) @ self.between
        other -= (other * unit).sum(1, keepdims=True) * unit
        other /= np.linalg.norm(other, axis=1, keepdims=True)
        return self.quantised(cosine * unit + np.sqrt(1 - cosine**2) * other)

    def quantised(self, vectors: np.ndarray) -> np.ndarray:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.clip(np.rint(unit * self.scale), -127, 127).astype(np.int8)

    def _normal(self, count: int) -> np.ndarray:
        return self.random.standard_normal((count, len(self.mean)), np.float32)


def root(covariance: np.ndarray) -> np.ndarray:
    values, axes = np.linalg.eigh(covariance)
    return (np.sqrt(np.maximum(values, 0))[:, None] * axes.T).astype(np.float32)


def cosine_of_views(views: np.ndarray) -> float:
    unit = views / np.linalg.norm(views, axis=2, keepdims=True)
    return float(np.mean(np.einsum("pvd,pwd->pvw", unit, unit)[:, ~np.eye(views.shape[1], dtype=bool)]))


def measure(index: VectorIndex, drawing: Drawing, detector: Detector, count: int, console: Console) -> None:
    """Search for vectors near known views; what a scan of all vectors finds is the reference."""
    table = Table(title=f"search at {detector.card.propose}, the three nearest images")
    for name in ("cosine of the copy", "found by the search", "found by a scan", "of the scan's images", "ms a query"):
        table.add_column(name, justify="right")
    min_score = detector.score(detector.card.propose)
    for cosine in COSINES:
        chosen = np.linspace(0, len(index.vectors) - 1, count).astype(np.int64)
        queries = drawing.near(index.vectors[chosen], cosine)
        began = time.process_time()
        found = index.search(queries, min_score, 3)
        spent_ms = (time.process_time() - began) / count * 1000
        pairs = set(zip(found.queries.tolist(), found.images.tolist(), strict=True))
        exact = scan(index, queries, min_score)
        own = set(enumerate((chosen // index.views).tolist()))
        table.add_row(
            f"{cosine:.2f}",
            f"{len(own & pairs) / count:.3f}",
            f"{len(own & exact) / count:.3f}",
            f"{len(exact & pairs) / max(1, len(exact)):.3f} of {len(exact):,}",
            f"{spent_ms:.2f}",
        )
    console.print(table)


def scan(index: VectorIndex, queries: np.ndarray, min_score: int) -> set[tuple[int, int]]:
    """Return the pairs of a query and one of its three nearest images, by comparing all vectors."""
    hits: list[tuple[int, int, int]] = []
    floats = queries.astype(np.float32)
    step = _BLOCK // index.views * index.views
    for at in range(0, len(index.vectors), step):
        values = scores(floats, index.vectors[at : at + step])
        best = values.reshape(len(queries), -1, index.views).max(2)
        hits += [(q, -int(best[q, p]), at // index.views + p) for q, p in np.argwhere(best >= min_score).tolist()]
    nearest: dict[int, list[int]] = {}
    for query, _, image in sorted(hits):
        if len(nearest.setdefault(query, [])) < 3:
            nearest[query].append(image)
    return {(query, image) for query, images in nearest.items() for image in images}


def memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
