import base64
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dedup.eval_sets import registered
from dedup.overlap import OverlapSummary
from dedup.report import overall, percent, render_html, render_json, web_url, write_report
from dedup.report_data import Balance, EvalReport, Evidence, ModelAccuracy, QueryRow, ReportData, StageFlow
from dedup.statistics import contamination, split_accuracy


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "JPEG")
    return buffer.getvalue()


def evidence(distance: int, text: str = "a caption", url: str = "https://a.example/x.jpg") -> Evidence:
    return Evidence(
        eval_id=text,
        label=text,
        uid="0" * 32,
        distance=distance,
        view="mirror",
        degree="edited" if distance else "re-encoded",
        edit="mirrored" if distance else "",
        caption=text,
        url=url,
        page_url=url,
        eval_jpeg=jpeg(),
        image_jpeg=None if distance == 4 else jpeg(),
    )


def eval_report(name: str, text: str = "a caption", url: str = "https://a.example/x.jpg") -> EvalReport:
    distances = tuple({0: 3, 4: 2, 30: 1}.get(bits, 0) for bits in range(32))
    pairs = tuple(evidence(bits, text, url) for bits in (0, 4, 30))
    return EvalReport(name, 200, OverlapSummary(6, 9, 7, distances, 12, 0), 31, pairs, {"broken_image": 2}, flat=20)


def report_data(text: str = "a caption", url: str = "https://a.example/x.jpg") -> ReportData:
    overlap = np.arange(200) < 6
    score = ModelAccuracy(text, split_accuracy(np.arange(200) % 2 == 0, overlap))
    accurate = replace(eval_report("cifar100", text, url), accuracies=(score,))
    return ReportData(
        facts=(("Seed", "7"), (text, text)),
        stages=(StageFlow("pairs", 10, 6, {"no_match": 4}), StageFlow("plan", 0, 0, {})),
        evals=(
            accurate,
            eval_report("my-own", text, url),
            EvalReport("mnist", 50, OverlapSummary(0, 0, 0, (0,) * 16, 0, 0), 15),
        ),
        min_quality=50,
        balance=Balance.of(np.array([0, 5, 90_000]), np.array([0, 4, 20_000]), 20_000),
        head=(QueryRow(text, 90_000, 40_000, 20_000),),
        tail=(QueryRow("rare", 5, 5, 4),),
    )


class Page(HTMLParser):
    """What a browser's parser makes of the page: tags with attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def structure(page: Page) -> list[tuple[str, tuple[str, ...]]]:
    return [(tag, tuple(sorted(attributes))) for tag, attributes in page.tags]


HOSTILE = [
    '<script>document.title="owned"</script>',
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %}",
    "\u202eright to left",
    "a\x00b\x1bc",
    "</title></head><body onload=alert(1)>",
    "&lt;script&gt;",
]


@given(st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=60))
@settings(max_examples=25)
def test_text_of_strangers_stays_text(text: str) -> None:
    page, plain = Page(render_html(report_data(text))), Page(render_html(report_data()))
    assert structure(page) == structure(plain)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_strangers_is_shown_as_it_is(text: str) -> None:
    shown = "".join(Page(render_html(report_data(text))).text)
    assert shown.count(text) >= 12


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "file:///etc/passwd",
        "//a.example/x",
        "https:alert(1)",
        "http://[broken",
        "vbscript:x",
        "",
    ],
)
def test_only_web_urls_become_links(url: str) -> None:
    assert web_url(url) is None
    links = Page(render_html(report_data(url=url))).all("a")
    assert all((link["href"] or "").startswith("#") for link in links)


def test_links_send_no_referrer() -> None:
    links = [a for a in Page(render_html(report_data(url="http://a.example/?q=%22"))).all("a") if a["href"][0] != "#"]  # type: ignore[index]
    assert {a["href"] for a in links} == {"http://a.example/?q=%22"}
    assert {a["rel"] for a in links} == {"noopener noreferrer nofollow"}


def test_the_page_needs_nothing_but_itself() -> None:
    page = Page(render_html(report_data()))
    assert not page.all("link")
    assert not page.all("iframe")
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 10  # two sets, three pairs each, one picture of each set missing
    for source in sources:
        kind, encoded = str(source).split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(encoded) == jpeg()


def test_the_policy_allows_our_script_and_style_alone() -> None:
    html = render_html(report_data("<script>x</script>"))
    [policy] = [m["content"] for m in Page(html).all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    for tag in ("script", "style"):
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in str(policy)


def test_every_set_is_measured_or_said_not_to_be() -> None:
    data = report_data()
    assert [known.name for known in data.not_measured] == [
        known.name for known in registered() if known.name not in ("cifar100", "mnist")
    ]
    text = "".join(Page(render_html(data)).text)
    assert "2 of 35" in text
    assert all(known.name in text for known in data.not_measured)


@pytest.mark.parametrize(("count", "own", "is_compared"), [(2, 0, False), (4, 9, False), (5, 0, True), (5, 3, True)])
def test_figures_are_compared_with_the_papers_where_registered_sets_are_measured(count, own, is_compared) -> None:
    names = [known.name for known in registered()[:count]]
    evals = (
        *map(eval_report, names),
        *(replace(eval_report(names[0]), name=f"own{n}") for n in range(own)),
    )
    found = overall(replace(report_data(), evals=evals))
    assert found["is_comparable"] == is_compared
    assert found["counted"] == (count if is_compared else count + own)
    assert (found["median_share"] is not None) == (count + own >= 5)
    text = "".join(Page(render_html(replace(report_data(), evals=evals))).text)
    assert ("CLIP:" in text) == is_compared
    assert ("median overlap" in text) == (count + own >= 5)


def test_the_page_says_what_the_cap_promises() -> None:
    balance = Balance.of(np.array([9, 50]), np.array([9, 20]), 20, np.array([9, 31]), 40)
    assert (balance.more_than_cap, balance.most_matched) == (1, 31)
    text = "".join(Page(render_html(replace(report_data(), balance=balance))).text)
    assert "a query selects at most 20 pairs" in text
    assert "Counted over 40 pairs of this dataset, 1 queries match more than 20 pairs; the maximum is 31" in text


def test_counts_are_those_of_the_evidence() -> None:
    html = render_html(report_data())
    page = Page(html)
    assert len(page.all("figure")) == 6
    assert [figure["data-distance"] for figure in page.all("figure")] == ["0", "4", "30"] * 2
    steps = json.loads(page.all("article")[0]["data-by-threshold"] or "")
    assert [step[0] for step in steps] == [3] * 4 + [5] * 26 + [6] * 2
    share = contamination(6, 200)
    assert steps[-1][1:] == ["3.0\u00a0%", f"{percent(share.low)} – {percent(share.high)}"]
    assert "3 of 6 pairs shown" in "".join(page.text)
    assert "32x32 pixels; the paper itself reports false positives here." in "".join(page.text)
    assert "20 of the images (10.0\u00a0%) are too flat" in "".join(page.text)
    assert "One image matches 12 different examples" in "".join(page.text)


def test_edited_copies_are_shown_with_what_was_done_and_counted_at_every_threshold() -> None:
    copy = replace(evidence(130), edit="mirrored, cropped to 49%")
    summary = OverlapSummary(6, 9, 7, (2, 1, 0), 12, 3)
    report = replace(eval_report("cifar100"), evidence=(copy,), summary=summary, max_distance_bits=2)
    page = html.unescape(render_html(replace(report_data(), evals=(report,))))
    assert "mirrored, cropped to 49%" in page
    assert "130 bits" not in page
    assert "3 of the examples have only edited copies" in page
    counts = json.loads(re.search(r'data-by-threshold="(.*?\])"', page)[1])
    assert [count for count, _, _ in counts] == [5, 6, 6]


def test_a_set_without_overlap_is_not_tested() -> None:
    data = report_data()
    score = ModelAccuracy("a caption", split_accuracy(np.arange(50) % 2 == 0, np.zeros(50, np.bool_)))
    data = replace(data, evals=(*data.evals[:2], replace(data.evals[2], accuracies=(score,))))
    first, _, last = (entry["accuracies"] for entry in json.loads(render_json(data))["sets"])
    assert first[0]["bonferroni_p_value"] == first[0]["p_value"]
    assert last[0]["bonferroni_p_value"] is None
    page = render_html(data)
    assert "multiplied by the number of sets tested (1, Bonferroni)" in page
    assert '<td class="number soft">–</td>' in page


def table_rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells' text of the first table after a heading, row by row."""
    table = page.partition(f"<h2>{heading}</h2>")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = ["".join(Page(row.replace("</td>", "|")).text) for row in table.split("</tr>")[:-1]]
    return [[" ".join(cell.split()) for cell in row.split("|")[:-1]] for row in rows]


def test_every_model_has_its_row_and_its_own_number_of_tests() -> None:
    """Here "ours" is scored on two sets with an overlap and "a baseline" on one."""
    overlap = np.arange(200) < 6
    good, bad = split_accuracy(np.arange(200) % 2 == 0, overlap), split_accuracy(np.arange(200) < 4, overlap)
    part = split_accuracy(np.arange(150) % 2 == 0, np.arange(150) < 6)
    evals = (
        replace(eval_report("cifar100"), accuracies=(ModelAccuracy("ours", bad), ModelAccuracy("a baseline", good))),
        replace(eval_report("my-own"), accuracies=(ModelAccuracy("ours", part),)),
    )
    data = replace(report_data(), evals=evals)
    page = render_html(data)
    rows = table_rows(page, "Effect on accuracy")
    assert [row[:4] for row in rows] == [
        ["CIFAR-100", "a baseline", "200", "50.0 %"],
        ["CIFAR-100", "ours", "200", "2.0 %"],
        ["my-own", "ours", "150 of 200", "50.0 %"],
    ]
    assert rows[1][-3:-1] == ["+2.00", f"{(4 / 6 - 0) * 100:+.2f}"]  # all - clean, overlap - clean
    assert "(1 to 2, Bonferroni)" in page
    first, second = (entry["accuracies"] for entry in json.loads(render_json(data))["sets"])
    assert [score["model"] for score in first] == ["a baseline", "ours"]
    assert first[0]["bonferroni_p_value"] == first[0]["p_value"]
    assert second[0]["bonferroni_p_value"] == min(1, 2 * second[0]["p_value"])
    assert first[1]["advantage"] == pytest.approx(4 / 6)


def test_accuracies_are_shown_where_no_set_has_an_overlap() -> None:
    data = report_data()
    score = ModelAccuracy("ours", split_accuracy(np.arange(50) % 5 == 0, np.zeros(50, np.bool_)))
    page = render_html(replace(data, evals=(replace(data.evals[2], accuracies=(score,)),)))
    assert '<td class="number">20.0\u00a0%</td>' in page
    assert "Bonferroni" not in page


def test_json_has_the_numbers() -> None:
    found = json.loads(render_json(report_data()))
    first = found["sets"][0]
    assert first["share"] == {"count": 6, "total": 200, "value": 0.03, "confidence": 0.95} | {
        "low": contamination(6, 200).low,
        "high": contamination(6, 200).high,
    }
    assert (first["overlap"], first["found"], first["images"]) == (6, 9, 7)
    assert first["accuracies"][0]["overlap"]["confidence"] == 0.995
    assert first["accuracies"][0]["bonferroni_p_value"] == first["accuracies"][0]["p_value"]  # one set was tested
    assert [s["registered"] for s in found["sets"]] == [True, False, True]
    assert "jpeg" not in json.dumps(found)
    assert found["overall"]["mean_share"] == pytest.approx(0.02)
    assert found["overall"]["median_share"] is None  # three sets have none
    assert found["queries"]["head"][0]["not_kept"] == 20_000
    assert len(found["not_measured"]) == 33


def test_notes_keep_their_capitals() -> None:
    data = replace(report_data(), evals=(eval_report("country211"),))
    assert "Made from YFCC100M, which is part" in "".join(Page(render_html(data)).text)


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    data = ReportData(facts=(), stages=(StageFlow("pairs", 0, 0, {}),), evals=(), min_quality=50)
    write_report(data, tmp_path / "report")
    text = (tmp_path / "report" / "index.html").read_text()
    assert "nothing was measured" in text
    assert len([one for one in Page(text).all("li") if "title" in one]) == 35


def test_writing_twice_gives_the_same_files(tmp_path: Path) -> None:
    trees = []
    for _ in range(2):
        write_report(report_data(), tmp_path)
        trees.append({p.name: p.read_bytes() for p in tmp_path.iterdir()})
    assert trees[0] == trees[1]
    assert set(trees[0]) == {"index.html", "overlap.json"}


def test_balance_counts_queries() -> None:
    balance = Balance.of(np.array([0, 1, 5, 900, 30_000]), np.array([0, 0, 5, 100, 100]), 100)
    assert (balance.queries, balance.without_pairs, balance.at_cap) == (5, 2, 2)
    assert sum(balance.before) == sum(balance.after) == 5


@pytest.mark.parametrize(
    ("share", "written"),
    [(None, "–"), (0, "0 %"), (0.215, "21.5 %"), (0.0032, "0.32 %"), (0.00994, "1.0 %"), (1, "100.0 %")],
)
def test_fractions_are_formatted_as_percentages(share: float | None, written: str) -> None:
    assert percent(share).replace("\u00a0", " ") == written


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A local server that notes every request it is sent."""
    requests: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Note)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def dom_after_loading(page: Path, profile: Path) -> str:
    """Return the page's DOM in headless Chromium, after its scripts ran."""
    assert CHROMIUM
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    more = f"--disable-component-update --disable-sync --virtual-time-budget=3000 --user-data-dir={profile}"
    command = [CHROMIUM, *flags.split(), *more.split(), "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")
def test_a_browser_runs_our_script_alone_and_asks_for_nothing(tmp_path: Path, listener: tuple[str, list[str]]) -> None:
    server, requests = listener
    attack = (
        f"<script>document.title='owned';fetch('{server}/script')</script><img src='{server}/img' onerror=\"alert(1)\">"
        f"<link rel=stylesheet href='{server}/css'><meta http-equiv=refresh content='0;url={server}/meta'>"
        f"<iframe src='{server}/frame'></iframe><style>body{{background:url({server}/style)}}</style>"
    )
    write_report(report_data(attack, f"{server}/link"), tmp_path)
    page = tmp_path / "index.html"
    moved = page.read_text().replace('max="31" value="31"', 'max="31" value="10"')
    page.write_text(moved)

    dom = dom_after_loading(page, tmp_path / "profile")
    assert requests == []
    assert "<title>Overlap report</title>" in dom
    # Our script did run: it marked the page and followed the slider, here left at 10 bits.
    assert re.search(r'<html lang="en" class="scripted">', dom)
    hidden = [figure["data-distance"] for figure in Page(dom).all("figure") if "hidden" in figure]
    assert hidden == ["30", "30"]
    counts = re.findall(r'data-field="count">([^<]*)<', dom)
    assert counts == ["5", "5", "0", "5", "5", "0"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium installed")
def test_the_policy_stops_what_escaping_would_miss(tmp_path: Path, listener: tuple[str, list[str]]) -> None:
    server, requests = listener
    write_report(report_data(), tmp_path)
    page = tmp_path / "index.html"
    injected = f"<script>document.title='owned'</script><img src='{server}/img'></body>"
    page.write_text(page.read_text().replace("</body>", injected))
    dom = dom_after_loading(page, tmp_path / "profile")
    assert f"{server}/img" in dom
    assert requests == []
    assert "<title>Overlap report</title>" in dom
