"""The world is the same for the same seed, and its ledger tells the truth about it."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dedup.decode import decode_rgb
from dedup.pdq import fingerprint, fingerprint_views
from pipeline.config import PairsConfig
from pipeline.config.fetch import FetchConfig
from pipeline.demo.failures import plant_failures
from pipeline.demo.ledger import Ledger
from pipeline.demo.publishing import PAGE_HOSTS, Publisher
from pipeline.demo.site import Site
from pipeline.demo.world import make_world, queries
from pipeline.fetching.images import store_image
from pipeline.records import Reason, pair_uid
from pipeline.sources.warc import read_warc
from pipeline.web.urls import normalize_url
from queries.normal_form import normalize

PICTURES = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("world")
    make_world(directory, seed=7, pictures=PICTURES)
    return directory


@pytest.fixture(scope="module")
def ledger(world: Path) -> Ledger:
    return Ledger.load(world / "web" / "planted.json")


@pytest.fixture(scope="module")
def site(world: Path) -> Site:
    return Site.load(world / "web")


def extract(directory: Path) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Read what the sources say: (url, caption) of every candidate, and how many rows were lost for which reason."""
    pairs: list[tuple[str, str]] = []
    lost: Counter[str] = Counter()
    for path in sorted((directory / "web" / "sources").glob("*.warc.gz")):
        with path.open("rb") as stream:
            for batch in read_warc(stream, PairsConfig()):
                lost.update(batch.dropped)
                rows = batch.candidates
                pairs += zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    archive = pq.read_table(directory / "web" / "sources" / "archive.parquet")
    pairs += zip(archive["url"].to_pylist(), archive["caption"].to_pylist(), strict=True)
    header, *lines = (directory / "web" / "sources" / "shop.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "caption\turl"
    pairs += [(line.split("\t")[1], line.split("\t")[0]) for line in lines]
    return pairs, lost


@pytest.fixture(scope="module")
def extracted(world: Path) -> tuple[list[tuple[str, str]], Counter[str]]:
    return extract(world)


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(world: Path, tmp_path: Path) -> None:
    make_world(tmp_path, seed=7, pictures=PICTURES)
    assert digests(tmp_path) == digests(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    make_world(tmp_path, seed=8, pictures=10)
    shared = digests(tmp_path).items() & digests(world).items()
    assert not [name for name, _ in shared if name.endswith((".jpg", ".png", ".webp")) and "/uploads" not in name]


def test_every_planted_pair_is_mentioned(ledger: Ledger, extracted: tuple[list[tuple[str, str]], Counter[str]]) -> None:
    mentioned = Counter(pair_uid(url, caption) for url, caption in extracted[0])
    planted = [uid for fate in ledger.fates for uid in fate.uids]
    planted += [uid for copies in ledger.copies for group in copies.groups for uid in group]
    planted += [uid for overlap in ledger.overlaps for uid in overlap.matches]
    planted += ledger.ordinary
    assert len(set(planted)) == len(planted), "a pair is planted for two purposes"
    assert not [uid for uid in planted if not mentioned[uid]]
    no_query = sum(count.number for count in ledger.counts if count.reason == Reason.NO_MATCH)
    assert len(mentioned) == len(planted) + no_query, "something is mentioned that is not in the ledger"
    repeats = sum(count.number for count in ledger.counts if count.reason == Reason.DUPLICATE_PAIR)
    assert mentioned.total() - len(mentioned) == repeats


def test_counted_reasons_are_what_the_sources_lose(
    ledger: Ledger, extracted: tuple[list[tuple[str, str]], Counter[str]]
) -> None:
    counted = {c.reason: c.number for c in ledger.counts if c.stage == "pairs" and c.reason != Reason.NO_MATCH}
    assert counted == dict(extracted[1])


def test_urls_are_normal_and_answered_or_never_asked(
    site: Site, ledger: Ledger, extracted: tuple[list[tuple[str, str]], Counter[str]]
) -> None:
    for url, _ in extracted[0]:
        assert normalize_url(url) == url
        assert (url in site.answers) or (url in ledger.unasked)
    for url, times in ledger.requests.items():
        assert url in site.answers
        assert times > 1
    asked_and_protected = [url for url in ledger.unasked if url in site.answers]
    assert asked_and_protected, "robots.txt protects pictures that exist"
    assert all("/private/" in url for url in asked_and_protected)


def test_captions_without_a_query_contain_none(
    ledger: Ledger, extracted: tuple[list[tuple[str, str]], Counter[str]]
) -> None:
    listed = [f" {normalize(query)} " for query in queries()]
    known = set(ledger.ordinary) | {uid for fate in ledger.fates for uid in fate.uids}
    known |= {uid for copies in ledger.copies for group in copies.groups for uid in group}
    known |= {uid for overlap in ledger.overlaps for uid in overlap.matches}
    matched = {
        pair_uid(url, caption): any(query in f" {normalize(caption)} " for query in listed)
        for url, caption in extracted[0]
    }
    assert sum(not found for uid, found in matched.items() if uid not in known) == PICTURES // 15
    assert all(matched[uid] for fate in ledger.fates for uid in fate.uids)


def test_queries_are_distinct() -> None:
    assert len(set(queries())) == len(queries())
    assert not [query for query in queries() if query != query.strip()]


def pdq(encoded: bytes) -> int:
    return int.from_bytes(fingerprint(decode_rgb(encoded)).pdq, "big")


def body(site: Site, url: str) -> bytes:
    return site.body(site.answers[url][-1])


@pytest.fixture(scope="module")
def url_of(extracted: tuple[list[tuple[str, str]], Counter[str]]) -> dict[str, str]:
    return {pair_uid(url, caption): url for url, caption in extracted[0]}


def test_copies_are_copies(site: Site, ledger: Ledger, url_of: dict[str, str]) -> None:
    for copies in ledger.copies:
        for group in copies.groups:
            bodies = [body(site, url_of[uid]) for uid in group]
            if copies.reason != Reason.NEAR_DUPLICATE:
                is_one_url = len({url_of[uid] for uid in group}) == 1
                assert is_one_url == (copies.reason == Reason.OTHER_CAPTION_OF_SAME_IMAGE)
                assert len(set(bodies)) == 1, copies.kind
            else:
                assert len(set(bodies)) == len(bodies)
                assert (pdq(bodies[0]) ^ pdq(bodies[1])).bit_count() <= 12, copies.kind


def test_copies_are_near_as_they_are_stored_too(tmp_path: Path) -> None:
    """Of a fine pattern, a copy of another size or lying on its side can be stored as something else."""
    ledger = make_world(tmp_path, seed=7, pictures=200)
    site = Site.load(tmp_path / "web")
    url_of = {pair_uid(url, caption): url for url, caption in extract(tmp_path)[0]}
    stored = FetchConfig(network=False, image_size=128)
    for copies in ledger.copies:
        if copies.reason == Reason.NEAR_DUPLICATE:
            for group in copies.groups:
                hashes = [int.from_bytes(store_image(body(site, url_of[uid]), stored).pdq) for uid in group]
                assert (hashes[0] ^ hashes[1]).bit_count() <= 12, copies.kind


def test_eval_copies_show_the_eval_image(world: Path, site: Site, ledger: Ledger, url_of: dict[str, str]) -> None:
    assert [overlap.eval_set for overlap in ledger.overlaps] == ["objects"] * 9
    for overlap in ledger.overlaps[:4]:
        for uid, eval_id in overlap.matches.items():
            example = (world / "evals" / overlap.eval_set / eval_id).read_bytes()
            copy = body(site, url_of[uid])
            if overlap.kind == "exact copy":
                assert copy == example
            view = "mirror" if overlap.kind == "mirrored copy" else "upright"
            wanted = int.from_bytes(dict(fingerprint_views(decode_rgb(example)))[view], "big")
            assert (pdq(copy) ^ wanted).bit_count() <= 12, overlap.kind


def test_edited_copies_are_beyond_a_perceptual_hash(
    world: Path, site: Site, ledger: Ledger, url_of: dict[str, str]
) -> None:
    edited = [overlap for overlap in ledger.overlaps if overlap.is_edited]
    assert len(edited) == 5
    for overlap in edited:
        if overlap.kind == "copy under a sticker":  # a small one is within reach of both
            continue
        far = []
        for uid, eval_id in overlap.matches.items():
            views = fingerprint_views(decode_rgb((world / "evals" / overlap.eval_set / eval_id).read_bytes()))
            copy = pdq(body(site, url_of[uid]))
            far.append(min((copy ^ int.from_bytes(view, "big")).bit_count() for _, view in views) > 31)
        assert sum(far) > len(far) / 2, overlap.kind


def test_nothing_else_looks_alike(world: Path, site: Site, ledger: Ledger, url_of: dict[str, str]) -> None:
    """Pictures of the web, and those of the evaluation sets in all views, are far apart unless they were planted."""
    ordinary = [pdq(body(site, url_of[uid])) for uid in ledger.ordinary]
    for number, first in enumerate(ordinary):
        assert all((first ^ second).bit_count() > 45 for second in ordinary[number + 1 :])
    examples = sorted((world / "evals").rglob("*.png"))
    assert len(examples) == sum(ledger.eval_sets.values())
    for example in examples[::6]:
        views = [int.from_bytes(pdq, "big") for _, pdq in fingerprint_views(decode_rgb(example.read_bytes()))]
        assert all((view ^ picture).bit_count() > 45 for view in views for picture in ordinary)


def test_failures_are_on_hosts_of_their_own_or_dead(tmp_path: Path) -> None:
    """The hosts of the ordinary pictures answer at once: trouble there would delay everything else."""
    web = Publisher(Site(tmp_path), Ledger(1))
    plant_failures(web)
    for url, answers in web.site.answers.items():
        if url.split("/")[2] in PAGE_HOSTS:
            assert len(answers) == 1
            assert answers[0].manner == "whole"
            assert answers[0].status in (400, 403, 404, 410, 451)


def test_evaluation_sets_are_folders_of_classes(world: Path, ledger: Ledger) -> None:
    for name, examples in ledger.eval_sets.items():
        classes = sorted((world / "evals" / name).iterdir())
        sizes = {len(list(folder.glob("*.png"))) for folder in classes}
        assert len(sizes) == 1
        assert sizes.pop() * len(classes) == examples
        with Image.open(next(classes[0].glob("*.png"))) as picture:
            assert np.asarray(picture).shape[2] == 3


def test_a_ledger_survives_its_file(world: Path, ledger: Ledger, tmp_path: Path) -> None:
    ledger.save(tmp_path / "planted.json")
    assert (tmp_path / "planted.json").read_bytes() == (world / "web" / "planted.json").read_bytes()
    assert Ledger.load(tmp_path / "planted.json") == ledger
