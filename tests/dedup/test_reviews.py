"""Review files: what the page saves, merged over judges."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedup.errors import DedupError
from dedup.reviews import VERDICTS, Reviews
from dedup.statistics import contamination

PAIRS = [("set", f"{n}.png", f"u{n}") for n in range(4)]


def save(path: Path, judge: str, verdicts: dict[int, str]) -> Path:
    rows = [
        dict(zip(("eval", "eval_id", "uid"), PAIRS[n], strict=True)) | {"verdict": said} for n, said in verdicts.items()
    ]
    path.write_text(json.dumps({"judge": judge, "verdicts": rows}))
    return path


def test_the_majority_counts_and_agreement_is_told(tmp_path):
    files = [
        save(tmp_path / "a.json", "ada", {0: "same", 1: "same", 2: "different", 3: "unsure"}),
        save(tmp_path / "b.json", "bob", {0: "same", 1: "different", 2: "unsure"}),
        save(tmp_path / "c.json", "eve", {0: "same", 1: "same"}),
    ]
    judged = Reviews.read(files).of(PAIRS)
    assert (judged.same, judged.different, judged.unsure, judged.judges) == (2, 1, 1, 3)
    assert (judged.agreed, judged.judged_by_several) == (1, 3)
    assert judged.precision == contamination(2, 3)
    assert Reviews.read(files).of(PAIRS[3:]).judges == 1
    assert Reviews.read(files).of([("other", "0.png", "u0")]) is None


def test_a_judge_may_change_their_mind(tmp_path):
    first = save(tmp_path / "a.json", "ada", {0: "same", 1: "same"})
    second = save(tmp_path / "b.json", "ada", {0: "different"})
    judged = Reviews.read([first, second]).of(PAIRS)
    assert (judged.same, judged.different, judged.judges) == (1, 1, 1)


@given(st.dictionaries(st.text(max_size=5), st.dictionaries(st.sampled_from(PAIRS), st.sampled_from(VERDICTS))))
def test_merged_reviews_read_back(tmp_path_factory, verdicts):
    path = tmp_path_factory.mktemp("reviews") / "reviews.json"
    path.write_text(Reviews(verdicts).to_json(), encoding="utf-8")
    assert Reviews.read([path]) == Reviews(verdicts)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"7",
        b"[" * 100_000,
        b'{"judge": "\\ud800", "verdicts": []}',
        b'{"verdicts": []}',
        b'{"judge": "ada", "verdicts": [{"eval": "a", "eval_id": "b", "uid": "c", "verdict": "yes"}]}',
        b'{"judge": "ada", "verdicts": [{"eval": "a", "eval_id": "b", "verdict": "same"}]}',
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DedupError, match=r"^\S+a\.json: not a review[^\n]*$"):
        Reviews.read([tmp_path / "a.json"])


def test_a_missing_review_is_said_to_be_missing(tmp_path):
    with pytest.raises(DedupError, match=r"a\.json: no such file$"):
        Reviews.read([tmp_path / "a.json"])
