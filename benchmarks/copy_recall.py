"""Measure which edited copies each detector finds among strangers, alone and with verification on the pixels.

    python -m benchmarks.copy_recall TAR... --bases 121 [--detector MODEL.onnx] [--verify] [--hashes]
        [--yardstick MODEL.onnx] [--out FILE.json]

The photos of the tars are the references; some of them, spread evenly, are edited in every way of `dedup.copies.edits`.
A detector's threshold is the highest score of any edited photo with another photo ("zero"), or that of one pair of
strangers in a million ("1e-6"). The photo that a collage or an insert shows as well is no stranger. Photos that are
copies of an earlier one by PDQ are left out first; name other ones with --leave-out.
"""

import argparse
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from rich.console import Console
from rich.table import Table

from benchmarks.pdq_recall import as_row, hash_of
from dedup.copies.boxes import inner_boxes
from dedup.copies.detector import BATCH, Detector, scores
from dedup.copies.edits import EDITS, UNSEEN_EDITS, edited
from dedup.copies.match import Candidate, Described
from dedup.copies.verify import (
    Features,
    align_features,
    best_alignment,
    evaluation_features,
    features,
    seen_resolution,
)
from dedup.copies.views import VIEWS, evaluation_views
from dedup.decode import decode_rgb
from dedup.pdq import fingerprint, fingerprint_views

LONG_SIDE = 256
CANDIDATES = 3
NAMES = (*EDITS, *UNSEEN_EDITS)


@dataclass
class Photos:
    """References, and edits of some of them: query q is reference `own[q]` after edit `kinds[q]`.

    Some edits show the reference `other[q]` as well.
    """

    names: list[str]
    references: list[np.ndarray]
    queries: list[np.ndarray]
    own: np.ndarray
    other: np.ndarray
    kinds: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--bases", type=int, default=121)
    parser.add_argument("--base-tars", type=int, default=99, help="edit only photos of the first N tars")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="photos that are there twice")
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--hashes", action="store_true", help="measure PDQ and pHash too")
    parser.add_argument("--yardstick", type=Path, help="another model from uint8 NHWC to unit vectors, measured alone")
    parser.add_argument("--verify", action="store_true")
    parser.add_argument(
        "--propose",
        type=float,
        nargs="+",
        default=[],
        metavar="COSINE",
        help="look at pairs from these cosines; default: the detector's for this number of references",
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    photos = make_photos(arguments.tars, arguments.bases, arguments.base_tars, set(arguments.leave_out))
    strangers = len(photos.queries) * (len(photos.references) - 2)
    print(f"{len(photos.references)} references, {len(photos.queries)} edited photos, {strangers:,} pairs of strangers")
    columns: dict[str, np.ndarray] = {}
    figures: dict[str, object] = {"strangers": strangers, "references": len(photos.references)}
    if arguments.hashes:
        for name, similarity in (("PDQ", pdq_similarity(photos, figures)), ("pHash", phash_similarity(photos))):
            columns |= recalls(name, similarity, photos, figures)
            if name == "PDQ":
                own = similarity[np.arange(len(photos.queries)), photos.own]
                columns["PDQ, 31 bits"] = own >= -31
    if arguments.yardstick:
        columns |= recalls(
            "yardstick", detector_similarity(Yardstick(arguments.yardstick), photos, {}), photos, figures
        )
    if arguments.detector:
        detector = Detector.load(arguments.detector)
        similarity = detector_similarity(detector, photos, figures)
        columns |= recalls("learned", similarity, photos, figures)
        if arguments.verify:
            proposes = sorted(arguments.propose) or [detector.propose_in(len(photos.references))]
            for name, found in verified(detector, similarity, photos, figures, proposes).items():
                columns[name] = found
                if arguments.hashes:
                    columns[f"PDQ or {name}"] = found | columns["PDQ, 31 bits"]
    report(columns, photos, figures, arguments.out)


def make_photos(tars: list[Path], bases: int, base_tars: int, left_out: set[str]) -> Photos:
    names, references, first = [], [], None
    for place, path in enumerate(tars):
        if place == base_tars:
            first = len(references)
        for name, file in images(path):
            if name not in left_out:
                names.append(name)
                references.append(shrunk(decode_rgb(file)))
    first = len(references) if first is None else first
    hashes = np.stack([np.stack([as_row(pdq) for _, pdq in fingerprint_views(photo)]) for photo in references])
    kept = []
    for row in range(len(references)):
        near = np.bitwise_count(hashes[kept] ^ hashes[row, 0]).sum(2).min(1, initial=256) if kept else np.array([256])
        if near.min() > 40:
            kept.append(row)
    editable = [place for place, row in enumerate(kept) if row < first]
    references, names = [references[row] for row in kept], [names[row] for row in kept]
    chosen = sorted(editable, key=lambda place: hash_of(str(place)))[:bases]
    queries, own, others, kinds = [], [], [], []
    for kind, name in enumerate(NAMES):
        for place in chosen:
            other = (place * 7919 + 13) % len(references)
            queries.append(decode_rgb(edited(name, references[place], references[other], str(place))))
            own.append(place)
            others.append(other)
            kinds.append(kind)
    return Photos(names, references, queries, np.array(own), np.array(others), np.array(kinds))


def images(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.name.lower().endswith((".jpg", ".jpeg", ".png")):
                yield member.name, tar.extractfile(member).read()


def shrunk(photo: np.ndarray) -> np.ndarray:
    scale = LONG_SIDE / max(photo.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in (photo.shape[1], photo.shape[0]))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA) if scale < 1 else photo


class Yardstick:
    """A model without the metadata of a `Detector`, at 128 pixels a side."""

    scale = 400.0

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._running = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def describe(self, images: list[np.ndarray]) -> np.ndarray:
        """Return int8 vectors, as a detector does."""
        vectors = [self._describe(images[at : at + BATCH]) for at in range(0, len(images), BATCH)]
        return np.clip(np.rint(np.concatenate(vectors) * self.scale), -127, 127).astype(np.int8)

    def _describe(self, images: list[np.ndarray]) -> np.ndarray:
        squares = np.stack([cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA) for image in images])
        return self._running.run(None, {self._running.get_inputs()[0].name: squares})[0]


def detector_similarity(detector: Detector | Yardstick, photos: Photos, figures: dict[str, object]) -> np.ndarray:
    """Return cosines, `(queries, references)`: the best over the views of the one and the boxes of the other."""
    began = time.process_time()
    for query in photos.queries:
        inner_boxes(query)
    figures["boxes_ms"] = (time.process_time() - began) / len(photos.queries) * 1000
    figures["boxes_of_references"] = float(np.mean([len(inner_boxes(one)) for one in photos.references]))
    began = time.process_time()
    web = Described.of(detector, photos.queries)
    figures["describe_ms"] = (time.process_time() - began) / (len(photos.queries) + len(web.boxes)) * 1000
    owners = [number for number, _ in web.boxes]
    best = np.full((len(photos.queries), len(photos.references)), -(2**31), np.int32)
    views = [evaluation_views(photo) for photo in photos.references]
    figures["best_view"] = np.zeros_like(best, dtype=np.int8)
    for view in range(len(VIEWS)):
        described = detector.describe([one[view] for one in views])
        score = scores(web.whole, described)
        np.maximum.at(score, owners, scores(web.inner, described))
        figures["best_view"][score > best] = view
        np.maximum(best, score, out=best)
    return best / np.float32(detector.scale**2)


def pdq_similarity(photos: Photos, figures: dict[str, object]) -> np.ndarray:
    """Return the negative distance in bits of the nearest of eight views."""
    views = np.stack([np.stack([as_row(pdq) for _, pdq in fingerprint_views(photo)]) for photo in photos.references])
    began = time.process_time()
    rows = [as_row(fingerprint(query).pdq) for query in photos.queries]
    figures["pdq_ms"] = (time.process_time() - began) / len(photos.queries) * 1000
    return np.stack([-np.bitwise_count(views ^ row).sum(2).min(1).astype(np.float32) for row in rows])


def phash_similarity(photos: Photos) -> np.ndarray:
    """Return minus the number of differing bits of 64: signs of the low frequencies of 32 x 32 greys, without views."""

    def bits(photo: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(np.ascontiguousarray(photo), cv2.COLOR_RGB2GRAY)
        low = cv2.dct(cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32))[:8, :8].ravel()
        return np.packbits(low > np.median(low[1:]))

    hashes = np.stack([bits(photo) for photo in photos.references])
    return np.stack([-np.bitwise_count(hashes ^ bits(query)).sum(1).astype(np.float32) for query in photos.queries])


def recalls(name: str, similarity: np.ndarray, photos: Photos, figures: dict[str, object]) -> dict[str, np.ndarray]:
    """Return, for each threshold, which queries are found; write the thresholds to `figures`."""
    rows = np.arange(len(photos.queries))
    own = similarity[rows, photos.own].copy()
    strangers = similarity.copy()
    strangers[rows, photos.own] = -np.inf
    strangers[rows, photos.other] = -np.inf
    highest = np.partition(strangers.ravel(), -1000)[-1000:]
    highest.sort()
    zero = highest[-1]
    one_in_a_million = highest[-1 - int(strangers.size // 1_000_000)]
    row, column = np.unravel_index(strangers.argmax(), strangers.shape)
    figures[name] = {"zero": float(zero), "1e-6": float(one_in_a_million), "nearest": [int(row), int(column)]}
    if name == "learned":
        counts = [int((strangers >= level).sum()) for level in np.arange(0.2, 0.8, 0.05)]
        figures["strangers_from_0.2_by_0.05"] = counts
    return {
        f"{name}, zero": own > zero,
        f"{name}, 1e-6": own > one_in_a_million,
        f"{name}, first": own > strangers.max(1),
    }


def verified(
    detector: Detector, similarity: np.ndarray, photos: Photos, figures: dict[str, object], proposes: list[float]
) -> dict[str, np.ndarray]:
    """Return which queries are among the nearest candidates and agree on the pixels, for candidates from each cosine.

    Every pair from the lowest of them is aligned, to count false matches: not only the candidates of a build.
    """
    at = {propose: f"verified from {propose:.3g}" for propose in proposes}
    found = {name: np.zeros(len(photos.queries), bool) for name in at.values()}
    false: dict[tuple[str, str], list[tuple[str, float]]] = {}
    taken: dict[tuple[int, int, int | None], list[Features]] = {}
    strangers: list[float] = []
    pairs, seconds, looked_at, looking = 0, 0.0, 0, 0.0
    for query, picture in enumerate(photos.queries):
        nearest = np.argsort(-similarity[query], kind="stable")[:CANDIDATES]
        high = np.flatnonzero(similarity[query] >= proposes[0])
        began = time.process_time()
        web = features(picture) if len(high) else None
        looked_at, looking = looked_at + bool(len(high)), looking + time.process_time() - began
        for row in high.tolist():
            cosine, own = float(similarity[query, row]), row == photos.own[query]
            if not own and row == photos.other[query]:
                continue
            key = (row, Candidate(row, 0, int(figures["best_view"][query, row])).colours, seen_resolution(picture))
            if key not in taken:
                taken[key] = evaluation_features(photos.references[row], *key[1:])
            began = time.process_time()
            alignment = best_alignment(*align_features(taken[key], web))
            seconds += time.process_time() - began
            pairs += 1
            strangers += [] if own else [cosine]
            if alignment is None or not alignment.is_copy:
                continue
            if own and row in nearest:
                for propose, name in at.items():
                    found[name][query] |= cosine >= propose
            elif not own:
                names = (photos.names[photos.own[query]], photos.names[row])
                false.setdefault(names, []).append((NAMES[photos.kinds[query]], round(cosine, 3)))
    figures["aligned_pairs"] = pairs
    figures["features_ms"] = looking / max(1, looked_at) * 1000
    figures["align_ms_a_pair"] = seconds / max(1, pairs) * 1000
    cosines = [cosine for kinds in false.values() for _, cosine in kinds]
    for title, values in (("strangers_aligned", strangers), ("false_matches", cosines)):
        figures[title] = {name: sum(cosine >= propose for cosine in values) for propose, name in at.items()}
    figures["falsely_matched_pairs"] = [[*pair, len(kinds), kinds[:3]] for pair, kinds in sorted(false.items())]
    return found


def report(columns: dict[str, np.ndarray], photos: Photos, figures: dict[str, object], out: Path | None) -> None:
    figures.pop("best_view", None)
    table = Table(title="recall by edit")
    table.add_column("edit")
    for name in columns:
        table.add_column(name, justify="right")
    shares = {}
    for kind, name in enumerate(NAMES):
        shares[name] = {column: float(found[photos.kinds == kind].mean()) for column, found in columns.items()}
        table.add_row(name, *(f"{share:.3f}" for share in shares[name].values()), end_section=kind + 1 == len(EDITS))
    for title, kinds in (
        (f"mean of {len(EDITS)}", tuple(EDITS)),
        (f"mean of {len(UNSEEN_EDITS)} unseen", UNSEEN_EDITS),
    ):
        shares[title] = {column: float(np.mean([shares[kind][column] for kind in kinds])) for column in columns}
        table.add_row(title, *(f"{share:.3f}" for share in shares[title].values()))
    Console(width=160).print(table)
    print(json.dumps(figures))
    if out:
        out.write_text(json.dumps({"figures": figures, "recall": shares}, indent=1))


if __name__ == "__main__":
    main()
