"""The comparison accepts a workspace in which all is right, and notices each thing that is not."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.demo.compare import Verdict, compare
from pipeline.demo.ledger import Copies, Count, Fate, Ledger, Overlap

CAP = 2
LEDGER = Ledger(
    seed=1,
    fates=[Fate("dead link", ("http_not_found",), ("dead1", "dead2")), Fate("redirect", (), ("moved",))],
    counts=[Count("no query", "pairs", "no_match", 5)],
    copies=[
        Copies("same file", "exact_duplicate", (("same1", "same2", "same3"),)),
        Copies("smaller", "near_duplicate", (("near1", "near2"),)),
    ],
    overlaps=[
        Overlap("exact copy", "objects", {"eval1": "red/1.png"}),
        Overlap("mirrored copy", "objects", {"eval2": "red/2.png"}),
        Overlap("cropped copy", "objects", {"eval3": "red/3.png"}, is_edited=True),
    ],
    ordinary=["plain1", "plain2", "plain3", "plain4"],
    requests={"http://a.example/moved": 2},
    unasked=["http://a.example/private"],
    eval_sets={"objects": 10, "shapes": 5},
)
QUERIES = {"plain1": [0, 1], "plain2": [0], "plain3": [0], "dead1": [0]}


def row(uid: str, reason: str | None = None) -> dict[str, Any]:
    query_ids = QUERIES.get(uid, [int.from_bytes(uid.encode()) % 1_000_003])
    return {
        "uid": uid,
        "key": uid,
        "url": f"http://a.example/{uid}",
        "status": "success" if reason is None else "dropped",
        "reason": reason,
        "query_ids": query_ids,
        "selected_by": query_ids if reason is None else [],
    }


EVAL1 = ("eval1", "red/1.png", "upright", True, "equal bytes")
EVAL2 = ("eval2", "red/2.png", "mirror", True, "edited")
EVAL3 = ("eval3", "red/3.png", "flip", True, "edited")


@dataclass
class Made:
    """What a build of LEDGER's world should leave; tests spoil one thing each."""

    rows: list[dict[str, Any]] = field(
        default_factory=lambda: [
            row("dead1", "http_not_found"),
            row("dead2", "http_not_found"),
            row("moved"),
            row("same1", "exact_duplicate"),
            row("same2"),
            row("same3", "exact_duplicate"),
            row("near1"),
            row("near2", "near_duplicate"),
            row("eval1"),
            row("eval2"),
            row("eval3"),
            row("plain1"),
            row("plain2"),
            row("plain3", "over_final_cap"),
        ]
    )
    duplicates: dict[str, str] = field(default_factory=lambda: {"same1": "same2", "same3": "same2", "near2": "near1"})
    overlap: list[tuple[str, str, str, bool, str]] = field(default_factory=lambda: [EVAL1, EVAL2, EVAL3])
    unplanted_overlap: list[tuple[str, str, str, bool, str]] = field(default_factory=list)
    control: list[str] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"stage": "pairs", "inputs": 20, "kept": 15, "reasons": {"no_match": 5}},
            {"stage": "plan", "inputs": 15, "kept": 14, "reasons": {"over_cap": 1}},
        ]
    )
    requests: dict[str, int] = field(
        default_factory=lambda: {"http://a.example/moved": 2, "http://a.example/x": 1, "http://a.example/robots.txt": 9}
    )
    members: list[str] | None = None
    html: str = "&lt;script&gt;"

    def write(self, workspace: Path) -> None:
        for folder in ("shards", "dedup/overlap", "report"):
            (workspace / folder).mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.rows), workspace / "shards" / "00000.parquet")
        kept = [row["key"] for row in self.rows if row["reason"] is None]
        members = self.members or [f"{key}.{suffix}" for key in kept for suffix in ("jpg", "txt", "json")]
        with tarfile.open(workspace / "shards" / "00000.tar", "w") as tar:
            for name in members:
                tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        (workspace / "shards" / "sizes.json").write_text(json.dumps({"00000.tar": len(kept)}))
        duplicates = {"uid": list(self.duplicates), "survivor": list(self.duplicates.values())}
        pq.write_table(pa.table(duplicates), workspace / "dedup" / "duplicates.parquet")
        for name, rows in (("objects", self.overlap), ("shapes", self.unplanted_overlap)):
            columns = list(zip(*rows, strict=True)) or [[]] * 5
            kinds = (pa.string(), pa.string(), pa.string(), pa.bool_(), pa.string())
            names = ["uid", "eval_id", "view", "kept", "degree"]
            table = pa.table([pa.array(c, k) for c, k in zip(columns, kinds, strict=True)], names)
            pq.write_table(table, workspace / "dedup" / "overlap" / f"{name}.parquet")
        pq.write_table(pa.table({"uid": pa.array(self.control, pa.string())}), workspace / "dedup" / "control.parquet")
        (workspace / "report" / "accounting.json").write_text(json.dumps({"stages": self.stages}))
        (workspace / "report" / "index.html").write_text(self.html)


def judge(tmp_path: Path, made: Made) -> list[Verdict]:
    made.write(tmp_path)
    return compare(tmp_path, LEDGER, CAP, made.requests)


def wrong(verdicts: list[Verdict]) -> list[tuple[str, int, int]]:
    return [(verdict.kind, verdict.missed, verdict.false) for verdict in verdicts if not verdict.is_right]


def test_a_right_build_is_accepted_and_counted(tmp_path: Path) -> None:
    verdicts = judge(tmp_path, Made())
    assert wrong(verdicts) == []
    planted = {(verdict.section, verdict.kind): verdict.planted for verdict in verdicts}
    assert planted[("fetch", "dead link")] == 2
    assert planted[("duplicates", "same file")] == 2
    assert planted[("fetch", "ordinary image")] == 3, "the fourth was not planned: over the cap"
    assert planted[("laws", "pair is a sample")] == 8


def set_reason(uid: str, reason: str | None) -> Callable[[Made], None]:
    def spoil(made: Made) -> None:
        made.rows = [row(uid, reason) if r["uid"] == uid else r for r in made.rows]

    return spoil


def change(**values: Any) -> Callable[[Made], None]:
    def spoil(made: Made) -> None:
        for name, value in values.items():
            setattr(made, name, value)

    return spoil


def select(uid: str, selected_by: list[int]) -> Callable[[Made], None]:
    def spoil(made: Made) -> None:
        next(r for r in made.rows if r["uid"] == uid)["selected_by"] = selected_by

    return spoil


@pytest.mark.parametrize(
    ("spoil", "kind", "missed", "false"),
    [
        (set_reason("dead1", "timeout"), "dead link", 1, 0),
        (set_reason("dead1", None), "dead link", 1, 0),
        (set_reason("moved", "http_not_found"), "dead link", 0, 1),
        (set_reason("moved", "http_not_found"), "redirect", 1, 0),
        (set_reason("plain1", "timeout"), "ordinary image", 1, 0),
        (set_reason("same1", None), "same file", 2, 0),
        (set_reason("same1", "near_duplicate"), "same file", 1, 0),
        (set_reason("same1", "near_duplicate"), "smaller", 0, 1),
        (change(duplicates={"same1": "same2", "same3": "near1", "near2": "near1"}), "same file", 1, 0),
        (set_reason("near1", "near_duplicate"), "smaller", 1, 0),
        (change(overlap=[EVAL2, EVAL3]), "exact copy", 1, 0),
        (change(overlap=[EVAL1, EVAL2, EVAL3, ("eval1", "red/7.png", *EVAL1[2:])]), "anything else", 0, 1),
        (change(overlap=[EVAL1, EVAL2]), "cropped copy", 1, 0),
        (change(control=["plain1"]), "anything", 0, 1),
        (change(unplanted_overlap=[("plain1", "wavy/1.png", *EVAL1[2:])]), "anything else", 0, 1),
        (
            change(overlap=[EVAL1, ("eval2", "red/2.png", "upright", True, "edited"), EVAL3]),
            "mirrored copy",
            1,
            0,
        ),
        (change(stages=[{"stage": "pairs", "inputs": 19, "kept": 14, "reasons": {"no_match": 4}}]), "no query", 1, 0),
        (change(stages=[{"stage": "pairs", "inputs": 9, "kept": 2, "reasons": {"no_match": 7}}]), "no query", 0, 2),
        (
            change(stages=[{"stage": "pairs", "inputs": 9, "kept": 3, "reasons": {"no_match": 5}}]),
            "account of a stage closes",
            1,
            0,
        ),
        (
            change(stages=[{"stage": "pairs", "inputs": 6, "kept": 0, "reasons": {"no_match": 5, "bored": 1}}]),
            "account of a stage closes",
            1,
            0,
        ),
        (set_reason("plain3", None), "query selects all or 2", 1, 0),
        (select("plain2", []), "query selects all or 2", 1, 1),
        (select("plain2", [0, 5]), "query selects all or 2", 0, 1),
        (change(requests={"http://a.example/x": 2}), "URL is requested as often as planned", 1, 0),
        (change(requests={"http://a.example/private": 1}), "protected URL is never requested", 1, 0),
        (change(members=["moved.jpg", "moved.txt", "moved.json"]), "pair is a sample", 7, 1),
        (change(html='<p><script>document.title="planted"</script>'), "report page without foreign markup", 1, 0),
    ],
)
def test_each_mistake_is_noticed(
    tmp_path: Path, spoil: Callable[[Made], None], kind: str, missed: int, false: int
) -> None:
    made = Made()
    spoil(made)
    assert (kind, missed, false) in wrong(judge(tmp_path, made))


def test_a_large_demo_may_have_a_look_alike_and_miss_an_edited_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = ("plain1", "wavy/1.png", "upright", True, "edited")
    made = Made(overlap=[EVAL1, EVAL2], unplanted_overlap=[alike])
    found = wrong(judge(tmp_path / "small", made))
    assert found == [("cropped copy", 1, 0), ("drawn scene that looks alike", 0, 1)]
    monkeypatch.setattr("pipeline.demo.compare._EXACT_UP_TO", 1)
    assert wrong(judge(tmp_path / "large", made)) == []
    made.unplanted_overlap = [alike, ("plain2", *alike[1:])]
    assert wrong(judge(tmp_path / "two", made)) == [("drawn scene that looks alike", 0, 2)]
    made.unplanted_overlap = [(*alike[:4], "re-encoded")]
    assert wrong(judge(tmp_path / "other", made)) == [("anything else", 0, 1)]


def test_stages_must_follow_on_each_other(tmp_path: Path) -> None:
    made = Made()
    made.stages[1] |= {"inputs": 12, "kept": 11}
    assert ("account of a stage closes", 1, 0) in wrong(judge(tmp_path, made))


def test_a_uid_must_not_occur_twice(tmp_path: Path) -> None:
    made = Made()
    made.rows.append(row("moved"))
    assert ("uid occurs once", 1, 0) in wrong(judge(tmp_path, made))


def test_members_of_a_sample_must_be_adjacent(tmp_path: Path) -> None:
    made = Made()
    keys = [r["key"] for r in made.rows if r["reason"] is None]
    made.members = [f"{key}.{suffix}" for suffix in ("jpg", "txt", "json") for key in keys]
    missed, false = next((m, f) for kind, m, f in wrong(judge(tmp_path, made)) if kind == "pair is a sample")
    assert (missed, false) == (len(keys), len(keys))
