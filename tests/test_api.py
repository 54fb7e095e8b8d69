"""What people who program import: the names, what importing them costs, and the types of data they take."""

import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.recorded_web import picture

import dedup
import pipeline
import queries
import trainer
from dedup import EvalIndex, find_overlap, fingerprint, near_duplicates, overlap_statistics
from dedup.duplicates import choose_survivors
from dedup.eval_sets.index import index_eval_set
from dedup.hamming import search_by_scan
from pipeline import ConfigError, balance, load_config, open_set, read_source
from pipeline.records import pair_uid
from queries import Allowlist, QueryMatcher, import_allowlist, normalize

PACKAGES = (queries, dedup, pipeline, trainer)
ROOT = Path(__file__).parent.parent


def test_importing_the_packages_imports_nothing_heavy() -> None:
    script = "import queries, dedup, pipeline, trainer, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert not {"apache_beam", "torch", "numpy", "pyarrow", "PIL"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("uses", "absent"),
    [
        ("from queries import QueryMatcher; QueryMatcher(['dog'])", {"apache_beam", "torch", "scipy"}),
        ("from dedup import near_duplicates; near_duplicates([])", {"apache_beam", "torch"}),
        ("from pipeline import open_set, balance, read_source, load_config", {"apache_beam", "torch"}),
    ],
)
def test_names_import_what_they_need_only(uses: str, absent: set[str]) -> None:
    script = f"{uses}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert not absent & set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_there_typed_and_described(package: object) -> None:
    described = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in package.__all__:
        assert getattr(package, name).__doc__
        assert f"`{name}" in described, name
    assert set(package.__all__) <= set(dir(package))
    folder = Path(package.__file__).parent
    assert (folder / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_that_of_a_module(package: object) -> None:
    """`from dedup import x` would be the one or the other, after what was imported before."""
    for name in package.__all__:
        with pytest.raises(ModuleNotFoundError):
            import_module(f"{package.__name__}.{name}")


def test_the_door_is_for_people_only() -> None:
    """Modules import each other where things are defined; the lists of names are not in their way."""
    for package in PACKAGES:
        for path in Path(package.__file__).parent.rglob("*.py"):
            for other in PACKAGES:
                for line in path.read_text(encoding="utf-8").splitlines():
                    start = f"from {other.__name__} import "
                    if line.strip().startswith(start):
                        names = {name.strip() for name in line.strip().removeprefix(start).split(",")}
                        assert not names & set(other.__all__), f"{path}: {line}"


CAPTIONS = ["A dog", None, "dogs", "My DOG at the red-house"]
FORMS = {
    "list": lambda texts: texts,
    "tuple": tuple,
    "generator": iter,
    "numpy": lambda texts: np.array(texts, object),
    "array": lambda texts: pa.array(texts, pa.string()),
    "large": lambda texts: pa.array(texts, pa.large_string()),
    "slice": lambda texts: pa.array(["x", *texts], pa.string())[1:],
    "chunked": lambda texts: pa.chunked_array([texts[:1], texts[1:]], pa.string()),
    "no chunk": lambda texts: pa.chunked_array([pa.array(texts, pa.string())]),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_matcher_takes_texts_in_any_form(form: str) -> None:
    matcher = QueryMatcher(FORMS[form](["dog", "red house"]))
    assert matcher.match(FORMS[form](CAPTIONS)).to_pylist() == [[0], [], [], [0, 1]]
    assert normalize("Red-House") == "red house"


def test_empty_texts_in_any_form() -> None:
    for empty in ([], np.array([], object), pa.chunked_array([], pa.string()), pa.array([], pa.large_string())):
        assert QueryMatcher(["dog"]).match(empty).to_pylist() == []
        assert QueryMatcher(empty).match(["dog"]).to_pylist() == [[]]


@pytest.mark.parametrize("kind", [str, Path])
def test_paths_may_be_strings_or_paths(tmp_path: Path, kind: type) -> None:
    (tmp_path / "words.txt").write_text("dog\n")
    import_allowlist(kind(tmp_path / "words.txt"), kind(tmp_path / "queries.parquet"))
    assert Allowlist.load(kind(tmp_path / "queries.parquet")).queries == ["dog"]
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["a dog"]}), tmp_path / "table.parquet")
    (batch,) = read_source("url-table", kind(tmp_path / "table.parquet"))
    assert batch.candidates.column("caption").to_pylist() == ["a dog"]
    with pytest.raises(ConfigError, match="no such file"):
        load_config(kind(tmp_path / "none.toml"))
    with pytest.raises(ConfigError, match="kind = 'jsonl'"):
        list(read_source("jsonl", kind(tmp_path / "table.parquet")))  # type: ignore[arg-type]
    with pytest.raises(pipeline.UserError, match="no finished set"):
        open_set(kind(tmp_path))


def test_an_image_has_one_fingerprint_in_any_form(tmp_path: Path) -> None:
    image = Image.open(io.BytesIO(picture(3)))
    png = io.BytesIO()
    image.save(png, "PNG")
    (tmp_path / "image.png").write_bytes(png.getvalue())
    forms = [np.asarray(image), image, image.convert("RGBA"), png.getvalue()]
    forms += [tmp_path / "image.png", str(tmp_path / "image.png")]
    assert len({fingerprint(form).pdq for form in forms}) == 1
    assert fingerprint(image.convert("CMYK")).quality > 0
    with pytest.raises(ValueError, match="file signature"):
        fingerprint(b"no image")


hash_rows = st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 255), max_size=20)), max_size=20)


def hashes_of(rows: list[tuple[int, set[int]]]) -> np.ndarray:
    """Return hashes, (n, 32) uint8: of one of three centres, with some bits flipped."""
    centres = np.random.default_rng(5).integers(0, 2, (3, 256), np.uint8)
    bits = np.array([centres[centre] for centre, _ in rows], np.uint8).reshape(-1, 256)
    for row, (_, flipped) in enumerate(rows):
        bits[row, list(flipped)] ^= 1
    return np.packbits(bits, axis=1)


@given(hash_rows, st.integers(0, 15))
def test_near_duplicates_are_those_of_a_scan_of_all_pairs(rows: list[tuple[int, set[int]]], bits: int) -> None:
    hashes = hashes_of(rows)
    near = search_by_scan(hashes, hashes, bits)
    edges = np.stack([near.query_rows, near.index_rows], axis=1)
    expected = choose_survivors(np.arange(len(rows)), np.arange(len(rows)).astype(np.uint64), edges)
    assert near_duplicates(hashes, bits).tolist() == expected.tolist()


def test_hashes_may_come_in_any_form() -> None:
    hashes = hashes_of([(0, {1}), (1, set()), (0, {2}), (0, {1})])
    whole = [row.tobytes() for row in hashes]
    forms = [hashes, whole, pa.array(whole, pa.binary()), pa.array(whole, pa.binary(32)), pa.array(whole)[0:]]
    forms += [pa.chunked_array([whole[:1], whole[1:]], pa.binary(32)), np.array(whole, object), iter(whole)]
    for form in forms:
        assert near_duplicates(form, 15).tolist() == [0, 1, 0, 0]
    for empty in ([], np.empty((0, 32), np.uint8), pa.chunked_array([], pa.binary(32))):
        assert near_duplicates(empty).tolist() == []
    with pytest.raises(ValueError, match="32 bytes"):
        near_duplicates([b"short"])
    with pytest.raises(ValueError, match="max_distance_bits = 32"):
        near_duplicates(hashes, 32)


def test_overlap_of_images_in_memory(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / "evals/shapes" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(picture(number))).save(path)
    index_eval_set("mine", "folder", str(tmp_path / "evals"), tmp_path)
    index = EvalIndex.load(tmp_path / "mine/index.parquet")
    images = {
        "smaller": Image.open(io.BytesIO(picture(1))).resize((70, 60)),
        "same file": tmp_path / "evals/shapes/2.png",
        "other": picture(77),
    }
    found = find_overlap(images, index)
    assert found.select(["eval_id", "uid"]).to_pylist() == [
        {"eval_id": "shapes/1.png", "uid": "smaller"},
        {"eval_id": "shapes/2.png", "uid": "same file"},
    ]
    assert overlap_statistics(found, index).share.count == 2
    answers = {f"shapes/{number}.png": number > 0 for number in range(3)}
    accuracy = overlap_statistics(found, index, answers).accuracy
    assert accuracy is not None
    assert (accuracy.overlap.count, accuracy.overlap.total, accuracy.clean.count) == (2, 2, 0)
    with pytest.raises(ValueError, match=r"'other\.png'"):
        overlap_statistics(found, index, {"other.png": True})


@given(st.lists(st.sets(st.integers(0, 3), max_size=3).map(sorted), max_size=40), st.integers(1, 5), st.integers(0, 9))
def test_balance_keeps_the_cap_of_every_query_whatever_the_order(lists: list[list[int]], cap: int, seed: int) -> None:
    texts = ["dog", "cat", "tree", "house"]
    urls, captions = [f"http://a.example/{i}" for i in range(len(lists))], ["c"] * len(lists)
    table = pa.table(
        {"url": pa.array(urls, pa.string()), "caption": captions, "query_ids": pa.array(lists, pa.list_(pa.int32()))}
    )
    kept = balance(table, cap, seed, texts)
    for query in range(4):
        matched = sum(query in one for one in lists)
        assert sum(query in one for one in kept["selected_by"].to_pylist()) == min(cap, matched)
    assert all(kept["selected_by"].to_pylist())
    turned = balance(table.take(pa.array(range(len(lists))[::-1], pa.int64())), cap, seed, texts)
    assert sorted(turned["url"].to_pylist()) == sorted(kept["url"].to_pylist())
    uids = pa.array([pair_uid(url, "c") for url in urls], pa.string())
    by_uid = balance(table.select(["query_ids"]).append_column("uid", uids), cap, seed, texts)
    assert by_uid["selected_by"].to_pylist() == kept["selected_by"].to_pylist()


def test_balance_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="need a column uid, or url and caption"):
        balance(pa.table({"query_ids": pa.array([[0]], pa.list_(pa.int32()))}), 1)
    with pytest.raises(ValueError, match="cap = 0"):
        balance(pa.table({"uid": pa.array([], pa.string()), "query_ids": pa.array([], pa.list_(pa.int32()))}), 0)
