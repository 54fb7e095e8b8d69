"""Every query in the report: small enough, and found by the page's own script."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dedup.overlap import OverlapSummary
from dedup.query_search import decode_queries, encode_queries
from dedup.report import render_html
from dedup.report_data import Balance, EvalReport, Evidence, ReportData

SCRIPT = Path(__file__).parents[2] / "dedup/templates/queries.js"
QUERIES = ["dog", "red house", "tab\there", "cat", "Straße", "猫", "dogma"]
FOUND, PLANNED = np.array([9, 9, 0, 50, 1, 2, 3]), np.array([5, 4, 0, 9, 1, 2, 3])
KEPT = np.array([4, 4, 0, 8, 1, 1, 3])
DATA = ReportData((), (), (), 50, balance=Balance.of(FOUND, KEPT, 20))


def many(count: int) -> list[str]:
    """Return as many different queries of one to three words, of letters that are as frequent as in English."""
    random = np.random.default_rng(1)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = 1 / np.arange(1, 27)
    words = ["".join(random.choice(letters, random.integers(3, 10), p=weights / weights.sum())) for _ in range(30_000)]
    picks = random.integers(0, len(words), (count, 2))
    return [f"{words[a]} {words[b]} {i % 97}" for i, (a, b) in enumerate(picks)]


def eval_report(name: str, picture: bytes) -> EvalReport:
    """Return the report of a set with as much evidence as a page shows."""
    caption, url = "a caption of usual length, about a thing", "https://host.example/folder/picture.jpg"
    evidence = tuple(
        Evidence(f"e{i}", None, f"{i:032x}", i, "upright", "copy", "", caption, url, url, picture, picture)
        for i in range(24)
    )
    return EvalReport(name, 200, OverlapSummary(6, 9, 7, (1,) * 32, 12, 0), 31, evidence)


def test_every_query_is_there_in_order() -> None:
    rows = list(decode_queries(encode_queries(QUERIES, FOUND, PLANNED, KEPT)))
    assert [row[0] for row in rows] == ["cat", "dog", "red house", "dogma", "猫", "Straße", "tab here"]
    assert rows[1] == ("dog", 9, 5, 4)
    assert encode_queries(QUERIES, FOUND, PLANNED, KEPT) == encode_queries(QUERIES, FOUND, PLANNED, KEPT)
    assert list(decode_queries(encode_queries([], np.array([]), np.array([]), np.array([])))) == []


@pytest.mark.slow
def test_a_page_of_35_sets_and_half_a_million_queries_stays_under_20_mb() -> None:
    queries = many(500_000)
    found = np.random.default_rng(2).zipf(1.3, len(queries)).clip(0, 10**8)
    encoded = encode_queries(queries, found, np.minimum(found, 40_000), np.minimum(found, 20_000))
    picture = np.random.default_rng(3).bytes(5_000)  # a thumbnail of 128 px has 3 to 5 kB
    sets = tuple(eval_report(f"set-{i}", picture) for i in range(35))
    page = render_html(replace(DATA, evals=sets, queries=encoded))
    assert len(page.encode()) < 20_000_000
    assert page.count('<article class="set"') == 35
    assert sum(1 for _ in decode_queries(encoded)) == 500_000


_DOM = """
const element = (text = "") => ({
  textContent: text, value: "", children: [], listeners: {},
  addEventListener(name, f) { this.listeners[name] = f; },
  append(child) { this.children.push(child); },
  replaceChildren(...rows) { this.children = rows; },
});
const parts = {"query-search": element(), "query-status": element(), "query-data": element(%s)};
const body = element();
globalThis.document = {
  getElementById: (id) => parts[id], querySelector: () => body, createElement: () => element(),
};
require(%s);
(async () => {
  const seen = [];
  for (const wanted of %s) {
    parts["query-search"].value = wanted;
    await parts["query-search"].listeners[seen.length ? "input" : "focus"]();
    seen.push([parts["query-status"].textContent, body.children.map((row) => row.children.map((c) => c.textContent))]);
  }
  console.log(JSON.stringify(seen));
})();
"""


def test_the_script_of_the_page_finds_queries(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, to run the page's script")
    encoded = encode_queries(QUERIES, FOUND, PLANNED, KEPT)
    wanted = ["", "DOG", "straße", "nothing like it"]
    (tmp_path / "run.cjs").write_text(_DOM % (json.dumps(encoded), json.dumps(str(SCRIPT)), json.dumps(wanted)))
    done = subprocess.run([node, str(tmp_path / "run.cjs")], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    every, dog, street, none = json.loads(done.stdout)
    assert every[0] == "7 queries"
    assert [row[0] for row in every[1]] == [row[0] for row in decode_queries(encoded)]
    assert dog == ["2 queries", [["dog", "9", "5", "4"], ["dogma", "3", "3", "3"]]]
    assert street[1] == [["Straße", "1", "1", "1"]]
    assert none == ["0 queries", []]


def test_without_queries_the_page_has_no_search() -> None:
    assert 'id="query-search"' not in render_html(DATA)
    assert 'id="query-search"' in render_html(replace(DATA, queries=encode_queries(QUERIES, FOUND, PLANNED, KEPT)))
