import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dedup.copies.match import Copy
from dedup.copies.transform import Transform
from dedup.copies.verify import Alignment
from dedup.decode import decode_rgb
from dedup.eval_sets.index import INDEX, index_eval_set
from dedup.overlap import OVERLAP, EvalIndex, find_overlap, hash_matrix, pick_evidence, summarise_overlap
from dedup.pdq import VIEWS, fingerprint


def eval_table(rows: list[tuple[bytes, int, str]]) -> pa.Table:
    """Make an index of (the 8 views, quality, sha256) rows with ids e0, e1, ... and an unreadable row in front."""
    entries = [
        {"eval_id": f"e{i}", "views": views, "quality": quality, "sha256": sha}
        for i, (views, quality, sha) in enumerate(rows)
    ]
    return pa.Table.from_pylist([{"eval_id": "broken", "reason": "broken_image", "sha256": "s0"}, *entries], INDEX)


def image_table(rows: list[tuple[bytes, int, str]]) -> pa.Table:
    columns = {
        "uid": pa.array([f"u{i}" for i in range(len(rows))], pa.string()),
        "pdq": pa.array([pdq for pdq, _, _ in rows], pa.binary(32)),
        "pdq_quality": pa.array([quality for _, quality, _ in rows], pa.int32()),
        "sha256": pa.array([sha for _, _, sha in rows], pa.string()),
    }
    return pa.table(columns)


TURNS = (
    *("", "rotated by 90°", "rotated by 180°", "rotated by -90°"),
    *("mirrored", "mirrored, rotated by 180°", "mirrored, rotated by 90°", "mirrored, rotated by -90°"),
)


def naive(
    evals: list[tuple[bytes, int, str]], images: list[tuple[bytes, int, str]], max_bits: int, min_quality: int
) -> list[dict]:
    """Compare everything with everything, by the definition in dedup/overlap.py."""
    rows = []
    for e, (views, eval_quality, eval_sha) in enumerate(evals):
        for u, (pdq, quality, sha) in enumerate(images):
            hashes = [views[i * 32 : i * 32 + 32] for i in range(8)]
            bits = [(int.from_bytes(h) ^ int.from_bytes(pdq)).bit_count() for h in hashes]
            if sha == eval_sha:
                best = (0, 0)
            elif min(quality, eval_quality) >= min_quality and min(bits) <= max_bits:
                best = min((b, v) for v, b in enumerate(bits))
            else:
                continue
            score = 1 - best[0] / 256
            names = {"eval_id": f"e{e}", "uid": f"u{u}"}
            edit = "" if sha == eval_sha else TURNS[best[1]]
            degree = "equal bytes" if sha == eval_sha else "edited" if edit else "re-encoded"
            facts = {"score": score, "distance": best[0], "view": VIEWS[best[1]][0], "degree": degree, "edit": edit}
            rows.append({**names, **facts, **dict.fromkeys(OVERLAP.names[OVERLAP.names.index("cosine") :])})
    return rows


# Few bytes of each hash differ, so that many pairs are near.
HASH = st.binary(min_size=2, max_size=2).map(lambda tail: bytes(30) + tail)
SHA = st.sampled_from(["s0", "s1", "s2", "s3", "s4"])
EVAL = st.tuples(st.lists(HASH, min_size=8, max_size=8).map(b"".join), st.integers(0, 3), SHA)
IMAGE = st.tuples(HASH, st.integers(0, 3), SHA)


@given(
    st.lists(EVAL, max_size=6),
    st.lists(IMAGE, max_size=6),
    st.integers(0, 31),
    st.integers(0, 3),
)
def test_overlap_is_what_its_definition_says(
    evals: list[tuple[bytes, int, str]], images: list[tuple[bytes, int, str]], max_bits: int, min_quality: int
) -> None:
    index = EvalIndex.load(eval_table(evals))
    found = find_overlap(image_table(images), index, max_distance_bits=max_bits, min_quality=min_quality)
    assert found.schema == OVERLAP
    assert found.to_pylist() == naive(evals, images, max_bits, min_quality)


def test_flat_pictures_match_by_their_bytes_alone() -> None:
    flat = (bytes(256), 0, "black")
    images = [(bytes(32), 0, "another"), (bytes(32), 100, "textured"), (bytes(32), 0, "black")]
    found = find_overlap(image_table(images), EvalIndex.load(eval_table([flat])), max_distance_bits=31, min_quality=50)
    assert [(row["eval_id"], row["uid"], row["distance"]) for row in found.to_pylist()] == [("e0", "u2", 0)]


@pytest.mark.parametrize(("quality", "proven", "counts"), [(90, False, True), (10, False, False), (10, True, True)])
def test_what_the_detector_finds_counts_if_it_is_proven_or_textured(quality: int, proven: bool, counts: bool) -> None:
    index = EvalIndex.load(eval_table([(bytes(256), 90, "e0"), (bytes([255]) * 256, quality, "e1")]))
    images = image_table([(bytes([15]) * 32, 90, "u0"), (bytes([7]) * 32, 90, "u1")])
    alignment = Alignment(9, 0.8, 0.9, True, (1, 0, 0, 0, 1, 0))
    transform = Transform(True, 0.0, 1.0, ((0, 0), (1, 0), (1, 0.5), (0, 0.5)), 0.5, 1.0)
    copy = Copy(1, 0, 0.77, *((alignment, transform) if proven else (None, None)), inverted=False)
    found = find_overlap(images, index, max_distance_bits=31, min_quality=50, copies=[copy]).to_pylist()
    assert len(found) == counts
    for row in found:
        assert (row["eval_id"], row["uid"], row["distance"], row["degree"]) == ("e1", "u0", 128, "edited")
        assert row["cosine"] == pytest.approx(0.77)
        assert row["inliers"] == (9 if proven else None)
        assert row["edit"] == ("mirrored, cropped to 50%" if proven else "")
        assert row["corners"] == ([0, 0, 1, 0, 1, 0.5, 0, 0.5] if proven else None)
    kept = pa.Table.from_pylist([row | {"kept": True} for row in found], OVERLAP.append(pa.field("kept", pa.bool_())))
    summary = summarise_overlap(kept, 31)
    assert (summary.overlap, summary.edited, sum(summary.distances)) == (counts, counts, 0)


def test_tables_in_several_chunks(tmp_path: Path) -> None:
    evals = [(bytes([i]) * 256, 90, f"e{i}") for i in range(5)]
    images = [(bytes([i]) * 32, 90, f"u{i}") for i in range(5)]
    pq.write_table(eval_table(evals), tmp_path / "index.parquet", row_group_size=2)
    index = EvalIndex.load(pq.read_table(tmp_path / "index.parquet"))
    whole = image_table(images)
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2)]).slice(1)
    found = find_overlap(pieces, index, max_distance_bits=0, min_quality=50)
    assert [(r["eval_id"], r["uid"]) for r in found.to_pylist()] == [(f"e{i}", f"u{i}") for i in range(1, 5)]


def test_hashes_are_read_in_place_or_joined() -> None:
    column = pa.array([bytes([i]) * 32 for i in range(6)], pa.binary(32))
    assert hash_matrix(column.slice(2, 3))[:, 0].tolist() == [2, 3, 4]
    assert hash_matrix(pa.chunked_array([column.slice(4), column.slice(0, 1)]))[:, 31].tolist() == [4, 5, 0]
    assert hash_matrix(pa.array([], pa.binary(32))).shape == (0, 32)
    with pytest.raises(ValueError, match="1 of 2 hashes are null"):
        hash_matrix(pa.array([bytes(32), None], pa.binary(32)))


def jpeg(image: Image.Image, quality: int = 85) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def photo(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (14, 14, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("view", range(8))
def test_planted_copies_are_found_and_nothing_else(tmp_path: Path, view: int) -> None:
    """Index 30 pictures; of 20 fetched ones, 5 are shrunk, turned, recompressed copies."""
    (tmp_path / "in").mkdir()
    for seed in range(30):
        (tmp_path / "in" / f"{seed:02}.jpg").write_bytes(jpeg(photo(seed)))
    index_eval_set("mine", "folder", tmp_path / "in", tmp_path)
    index = EvalIndex.load(pq.read_table(tmp_path / "mine" / "index.parquet"))

    name, transpose = VIEWS[view]
    fetched = [photo(seed) for seed in range(25, 45)]
    for i in range(5):
        copy = fetched[i] if transpose is None else fetched[i].transpose(transpose)
        fetched[i] = copy.resize((copy.width // 2, copy.height // 2))
    files = [jpeg(image, 60) for image in fetched]
    prints = [fingerprint(decode_rgb(file)) for file in files]
    rows = [(p.pdq, p.quality, hashlib.sha256(f).hexdigest()) for p, f in zip(prints, files, strict=True)]
    found = find_overlap(image_table(rows), index, max_distance_bits=31, min_quality=50).to_pylist()
    assert [(r["eval_id"], r["uid"], r["view"]) for r in found] == [(f"{25 + i}.jpg", f"u{i}", name) for i in range(5)]
    assert max(r["distance"] for r in found) <= 10


OVERLAPS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 31), st.booleans()),
    max_size=20,
    unique_by=lambda r: r[:2],
).map(lambda rows: [{"eval_id": f"e{e}", "uid": f"u{u}", "distance": d, "kept": k} for e, u, d, k in rows])
SCHEMA = pa.schema([("eval_id", pa.string()), ("uid", pa.string()), ("distance", pa.int32()), ("kept", pa.bool_())])


@given(OVERLAPS)
def test_the_summary_counts_each_example_once(rows: list[dict]) -> None:
    summary = summarise_overlap(pa.Table.from_pylist(rows, SCHEMA), 31)
    kept = [r for r in rows if r["kept"]]
    examples = {r["eval_id"] for r in kept}
    assert summary.overlap == len(examples) == sum(summary.distances) + summary.edited
    assert summary.found == len({r["eval_id"] for r in rows})
    assert summary.images == len({r["uid"] for r in kept})
    nearest = [min(r["distance"] for r in kept if r["eval_id"] == e) for e in examples]
    assert summary.distances == tuple(nearest.count(bits) for bits in range(32))
    groups = [sum(r["uid"] == uid for r in kept) for uid in {r["uid"] for r in kept}]
    assert summary.most_examples_of_one_image == max(groups, default=0)


@given(OVERLAPS, st.integers(0, 6))
def test_evidence_is_spread_from_the_farthest_to_the_nearest(rows: list[dict], limit: int) -> None:
    picked = pick_evidence(pa.Table.from_pylist(rows, SCHEMA), limit).to_pylist()
    nearest: dict[str, int] = {}
    for row in rows:
        if row["kept"]:
            nearest[row["eval_id"]] = min(row["distance"], nearest.get(row["eval_id"], 99))
    assert len(picked) == min(limit, len(nearest))
    assert all(nearest[r["eval_id"]] == r["distance"] and r["kept"] for r in picked)
    distances = [r["distance"] for r in picked]
    assert distances == sorted(distances, reverse=True)
    assert not picked or distances[0] == max(nearest.values())
    assert len(picked) < 2 or distances[-1] == min(nearest.values())
