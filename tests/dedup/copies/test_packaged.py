"""The detector that comes with the package."""

import random
from pathlib import Path

import numpy as np
from support.copies import scene

from dedup.copies.detector import Detector, packaged_detector, scores
from dedup.copies.edits import EDITS
from dedup.copies.match import Described, describe_views


def test_it_is_small_and_says_what_made_it():
    path = packaged_detector()
    assert path.stat().st_size < 4_000_000
    told = (Path(__file__).parents[3] / "docs" / "copies.md").read_text()
    detector = Detector.load(path)
    assert 96 <= detector.card.side <= 128
    assert detector.card.loose <= detector.card.propose < detector.card.sure
    assert detector.sha256 in told
    facts = detector._running.get_modelmeta().custom_metadata_map
    assert facts["wit.command"] in told
    assert facts["wit.photos_sha256"] in told


def test_copies_are_nearer_than_strangers():
    detector = Detector.load(packaged_detector())
    originals = [scene(n) for n in range(12)]
    views = describe_views(detector, originals)
    for name in ("same", "crop 80%", "JPEG 10", "grey", "text"):
        web = Described.of(detector, [EDITS[name](one, originals[0], random.Random(1)) for one in originals])
        best = scores(web.whole, views).reshape(12, 12, -1).max(2)
        assert (best.argmax(1) == np.arange(12)).mean() > 0.9
