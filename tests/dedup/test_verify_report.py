"""Checking a report against its published tables: a right one passes, and every changed number is found."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup.captions import CAPTION_OVERLAP
from dedup.control import CONTROL, Control
from dedup.errors import DedupError
from dedup.measure import Recall
from dedup.overlap import OVERLAP, pick_evidence
from dedup.published import Published, derive, write_published
from dedup.report import write_report
from dedup.report_data import Balance, Evidence, QueryRow, ReportData, StageFlow
from dedup.reviews import Reviews
from dedup.verify_report import verify_report

EXAMPLES, EVIDENCE = 40, 5


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 90, 90)).save(buffer, "JPEG")
    return buffer.getvalue()


def published(name: str, copies: int) -> Published:
    ids = [f"{name}/{number}.png" for number in range(EXAMPLES)]
    reasons = [None] * (EXAMPLES - 2) + ["broken_image"] * 2
    examples = pa.table(
        {
            "eval_id": ids,
            "reason": pa.array(reasons, pa.string()),
            "quality": pa.array(np.arange(EXAMPLES) * 3, pa.int32()),
            "long_captions": pa.array([n % 4 for n in range(EXAMPLES)] if copies else [None] * EXAMPLES, pa.int32()),
        }
    )
    rows = [
        {
            "eval_id": ids[n // 2],
            "uid": f"u{n}",
            "score": 1 - n / 256,
            "distance": n if n % 3 else 120,
            "view": "upright",
        }
        | {"degree": "edited", "edit": "cropped to 64%", "kept": n % 5 != 0}
        for n in range(copies)
    ]
    pairs = pa.Table.from_pylist(rows, OVERLAP.append(pa.field("kept", pa.bool_())))
    correct = {"eval_id": ids, "correct": [number % 3 == 0 for number in range(EXAMPLES)]}
    planted = Recall({"same": (9, 9), "crop 80%": (7, 9), "pixelated": (5, 6)}, 1).table()
    texts = [
        {"eval_id": ids[n], "uid": f"t{n}", "eval_caption": f"seven words in caption {n} of it", "caption": f"x {n}"}
        | {"containment": 1 - n / 64, "kept": n != 3}
        for n in range(1, 6)
    ]
    captions = pa.Table.from_pylist(texts, CAPTION_OVERLAP.append(pa.field("kept", pa.bool_())))
    return Published(name, examples, pairs, {"small": pa.table(correct)}, planted, captions if copies else None)


def evidence(pairs: pa.Table) -> tuple[Evidence, ...]:
    names = ("eval_id", "uid", "distance", "view", "degree", "edit")
    told = {"label": "cat", "caption": "a <caption> with 7", "url": "https://a.example/1.jpg", "page_url": ""}
    return tuple(
        Evidence(
            **{name: row[name] for name in names}, **told, eval_jpeg=jpeg(n), image_jpeg=None if n == 1 else jpeg(9)
        )
        for n, row in enumerate(pick_evidence(pairs, EVIDENCE).to_pylist())
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sets = [published("cifar10", 24), published("my-own", 0)]
    shown = [("cifar10", pair.eval_id, pair.uid) for pair in evidence(sets[0].pairs)]
    verdicts = ("same", "same", "different", "unsure", "same")
    reviews = Reviews(
        {"ada": dict(zip(shown, verdicts, strict=True)), "bob": {shown[0]: "same", shown[1]: "different"}}
    )
    (tmp_path / "reviews.json").write_text(reviews.to_json())
    evals = tuple(
        replace(derive(one, 31, 50, evidence, reviews), evidence_limit=EVIDENCE, min_probability=0.85) for one in sets
    )
    control = pa.table([["a.png", "b.png", "c.png"], [["u1", "u2"], [], []]], CONTROL)
    data = ReportData(
        facts=(("Seed", "7"), ("Pairs", "1,234")),
        stages=(StageFlow("pool", 10, 6, {"no_match": 4}),),
        evals=evals,
        min_quality=50,
        balance=Balance.of(np.array([1, 5, 90]), np.array([1, 5, 20]), 20, np.array([1, 5, 30]), 40),
        head=(QueryRow("cat", 90, 30, 20),),
        detector=True,
        control=Control.of(control, 77),
        refused={"robots.txt": 3},
        queries="QUJD",
        pages=(("pairs.html", "the pairs & more"), ("data_card.md", "data card")),
    )
    write_report(data, tmp_path)
    write_published(sets, tmp_path, source="data", control=control)
    (tmp_path / "accounting.json").write_text(json.dumps({"stages": [dict(vars(s)) for s in data.stages]}))
    return tmp_path


def test_a_right_report_passes(folder: Path):
    assert verify_report(folder) == []
    assert len((folder / "cifar10.overlap_ids.txt").read_text().split()) == 12
    assert len((folder / "cifar10.clean_ids.txt").read_text().split()) == EXAMPLES - 2 - 12
    lines = (folder / "contamination.csv").read_text().splitlines()
    assert lines[1] == "CIFAR-10;;data;corpus;;;31.58;data-based"
    assert lines[2] == "my-own;;data;corpus;;;0;data-based"


def test_reviews_give_the_precision(folder: Path):
    (one, other) = json.loads((folder / "overlap.json").read_text())["sets"]
    assert other["judged"] is None
    judged = one["judged"]
    assert (judged["same"], judged["different"], judged["unsure"]) == (2, 1, 2)  # two judges differ on one pair
    assert (judged["judges"], judged["agreed"], judged["judged_by_several"]) == (2, 1, 2)
    assert judged["precision"]["value"] == pytest.approx(2 / 3)
    value, low, high = one["corrected_fraction"]
    assert low < value < high
    assert value == pytest.approx(one["share"]["value"] * 2 / 3 / (21 / 24))
    (folder / "reviews.json").unlink()
    assert any("judged" in problem for problem in verify_report(folder))


def paths(value, path=()):
    """Yield the way to every number in a JSON value."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def test_every_changed_number_of_the_json_is_found(folder: Path):
    told = json.loads((folder / "overlap.json").read_text())
    untold = {("format",), ("sets", 1, "evidence_limit")}  # the second set has no evidence to limit
    places = [path for path in paths(told) if path not in untold]
    assert len(places) > 150
    missed = []
    for path in places[::4]:
        changed = json.loads(json.dumps(told))
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] += 1
        (folder / "overlap.json").write_text(json.dumps(changed))
        try:
            found = verify_report(folder)
        except DedupError:
            continue
        if not found:
            missed.append(path)
    assert missed == []


def test_every_changed_number_of_the_page_is_found(folder: Path):
    page = (folder / "index.html").read_text()
    numbers = list(re.finditer(r">[^<>]*?([0-9])[^<>]*<", page[page.index("<body>") :]))
    assert len(numbers) > 80
    start = page.index("<body>")
    for number in numbers[::9]:
        at = start + number.start(1)
        (folder / "index.html").write_text(page[:at] + str((int(page[at]) + 1) % 10) + page[at + 1 :])
        (problem,) = verify_report(folder)
        assert problem.startswith("index.html: line ")


@pytest.mark.parametrize("table", ["examples", "overlap", "results", "planted", "captions"])
def test_a_missing_row_is_found(folder: Path, table: str):
    rows = pq.read_table(folder / f"{table}.parquet")
    pq.write_table(pa.concat_tables([rows.slice(0, 1), rows.slice(2)]), folder / f"{table}.parquet")
    assert any(problem.startswith("overlap.json: sets: cifar10") for problem in verify_report(folder))


def test_the_negative_control_is_derived_from_its_table(folder: Path):
    told = json.loads((folder / "overlap.json").read_text())["control"]
    assert (told["pictures"], told["images"], told["matches"]) == (3, 77, 1)
    assert "rate of false matches 33.3" in (folder / "index.html").read_text()
    rows = pq.read_table(folder / "control.parquet")
    pq.write_table(rows.slice(1), folder / "control.parquet")
    assert "overlap.json: control: matches is 1, but the tables give 0" in verify_report(folder)
    (folder / "control.parquet").unlink()
    with pytest.raises(DedupError, match=r"^\S+control\.parquet: no such file$"):
        verify_report(folder)


def test_the_account_is_compared(folder: Path):
    (folder / "accounting.json").write_text(json.dumps({"stages": [{"stage": "pool", "inputs": 11, "kept": 6}]}))
    assert "account: pool: inputs differs between overlap.json and accounting.json" in verify_report(folder)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("overlap.json", b"[]"),
        ("overlap.json", b'{"format": 5}'),
        ("overlap.json", b'{"format": 4}'),
        ("overlap.parquet", b"no parquet"),
        ("examples.parquet", None),
        ("overlap.json", None),
        ("index.html", b"\xff"),
    ],
)
def test_damaged_files_are_named(folder: Path, file: str, content: bytes | None):
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(DedupError, match=r"^\S+: [^\n]+$") as raised:
        verify_report(folder)
    assert content is not None or f"{file}: no such file" in str(raised.value)
