"""Several sets in one stream: exact shares, each sample once an epoch of its set, the same for any ranks; captions."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import run, tiny_settings
from support.scene_shards import write_scene_shards

from trainer.captions import CaptionRule
from trainer.errors import TrainerConfigError, TrainerError
from trainer.mixture import MixedOrder
from trainer.order import SampleOrder
from trainer.shards import Sample
from trainer.train import train


class _Mixed(MixedOrder):
    """With small blocks, so that the tests see many."""

    block = 256


def _mixed(counts: list[list[int]], shares: list[float], lanes: int, seed: int = 3) -> MixedOrder:
    orders = tuple(SampleOrder(np.array(c), seed=seed + n, lanes=lanes, window=50) for n, c in enumerate(counts))
    first = np.cumsum([0, *map(len, counts)])[:-1].tolist()
    return _Mixed(orders, tuple(shares), tuple(first), seed=seed, lanes=lanes)


def _listed(order: MixedOrder, start: int, stop: int) -> list[tuple[int, int, int]]:
    found = order.at(np.arange(start, stop))
    return list(zip(found.epoch.tolist(), found.shard.tolist(), found.index.tolist(), strict=True))


@given(shares=st.lists(st.floats(0.05, 1.0), min_size=2, max_size=4), lanes=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_every_set_has_its_share_and_its_samples_once_an_epoch(shares: list[float], lanes: int, seed: int):
    order = _mixed([[400, 300]] * len(shares), shares, lanes, seed)
    blocks = 20 * 256 * lanes
    samples = _listed(order, 0, blocks)
    sets = np.array([shard // 2 for _, shard, _ in samples])
    for number, share in enumerate(shares):
        here = (sets == number).sum()
        assert abs(here - blocks * share / sum(shares)) <= 2 * lanes
        own = [sample for sample, one in zip(samples, sets, strict=True) if one == number]
        assert len(set(own)) == len(own)
        whole_epochs = here // 700 - 1  # lanes run ahead of each other by less than an epoch
        for epoch in range(whole_epochs):
            assert sum(sample[0] == epoch for sample in own) == 700


@given(cuts=st.lists(st.integers(0, 9_000), max_size=5))
@settings(max_examples=20, deadline=None)
def test_a_position_means_the_same_however_the_stream_is_read(cuts: list[int]):
    shape: dict[str, Any] = {"counts": [[90], [50, 60]], "shares": [1.0, 2.5], "lanes": 3}
    whole = _listed(_mixed(**shape), 0, 9_000)
    pieces = [_listed(_mixed(**shape), a, b) for a, b in pairwise([0, *sorted(cuts), 9_000])]
    assert [sample for piece in pieces for sample in piece] == whole


def test_a_batch_has_each_sets_share():
    order = _mixed([[5_000], [5_000]], [3.0, 1.0], 4)
    for step in range(20):
        small = (order.at(np.arange(step * 400, (step + 1) * 400)).shard == 1).mean()
        assert small == pytest.approx(0.25, abs=0.09)


SAMPLE = Sample(b"", b" a txt ", json.dumps({"captions": ["one", "", 3, "two"], "alt": "alt", "n": 5}).encode())


@pytest.mark.parametrize(
    ("keys", "choice", "captions"),
    [
        ((), "first", ["one", "two"]),
        (("txt",), "any", ["a txt"]),
        (("alt", "txt"), "any", ["alt", "a txt"]),
        (("captions", "alt"), "first", ["one", "two", "alt"]),
        (("n", "absent"), "any", []),
    ],
)
def test_captions_by_key(keys: tuple[str, ...], choice: Any, captions: list[str]):
    rule = CaptionRule(choice, keys)
    assert rule.captions(SAMPLE) == captions
    assert rule.reads_json == (keys not in ((), ("txt",)))


@pytest.mark.parametrize("metadata", [b"", b"[1]", b"{", b"\xff", None])
def test_json_of_any_form_has_no_captions(metadata: bytes | None):
    assert CaptionRule("any", ("alt", "txt")).captions(Sample(b"", b"kept", metadata)) == ["kept"]


def test_a_run_on_two_sets_is_the_same_on_two_processes(tmp_path: Path):
    for name, first in (("a", 0), ("b", 100)):
        write_scene_shards(tmp_path / name, (60, 40), scene=lambda number, first=first: _scene(number + first))
    sets = [
        {"shards": [f"{tmp_path}/a/*.tar"], "weight": 3.0},
        {"shards": [f"{tmp_path}/b/*.tar"], "weight": 1.0, "captions": "any", "caption_keys": ["captions"]},
    ]
    keys: dict[str, Any] = {"sets": sets, "steps": 6, "log_steps": 1, "eps": 1e-4}
    assert run(tiny_settings(tmp_path, tmp_path / "one", **keys)) == [0]
    assert run(tiny_settings(tmp_path, tmp_path / "two", **keys), processes=2) == [0, 0]
    one, two = (
        [json.loads(line)["train/loss"] for line in (tmp_path / out / "metrics.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert two == pytest.approx(one, rel=1e-3)
    sets[0]["weight"] = 2.0
    with pytest.raises(TrainerError, match=r"belongs to another run \(train\.sets"):
        train(tiny_settings(tmp_path, tmp_path / "one", **keys | {"steps": 7}))


def _scene(number: int) -> tuple[str, str]:
    from support.scene_shards import scene_of

    return scene_of(number)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shards": ["x"], "sets": [{"shards": ["y"]}]}, "[train]: give train.shards or [[train.sets]], not both"),
        (
            {"sets": [{"shards": ["y"], "weight": 1.0}, {"shards": ["z"]}]},
            "[train]: give every one of [[train.sets]] a",
        ),
        ({"sets": [{"shards": ["y"], "wait": 1.0}]}, "unknown key train.sets.0.wait; allowed: shards, weight"),
        ({"sets": [{"shards": []}]}, "train.sets.0.shards = []: must not be empty"),
        ({"best": "loss"}, "[train]: train.best needs train.evaluate_steps"),
        ({"cooldown_steps": 5}, '[train]: train.cooldown_steps needs train.schedule = "cooldown"'),
    ],
)
def test_wrong_sets_are_one_line(tmp_path: Path, keys: dict[str, Any], message: str):
    with pytest.raises(TrainerConfigError) as caught:
        tiny_settings(tmp_path, tmp_path, **keys)
    assert str(caught.value).startswith(message)


def test_a_set_too_small_for_its_weight_is_one_line(scenes: Path, tmp_path: Path):
    write_scene_shards(tmp_path / "few", (3,))
    for weight, message in ((30.0, "its part of a batch, 23, is more than its 3 samples"), (1e-5, "at least 0.00049")):
        sets = [
            {"shards": [f"{scenes}/shards/*.tar"], "weight": 1.0},
            {"shards": [f"{tmp_path}/few/*.tar"], "weight": weight},
        ]
        with pytest.raises(TrainerConfigError, match=message):
            train(tiny_settings(tmp_path, tmp_path / "out", sets=sets))


def test_samples_without_caption_are_dropped_and_counted_but_do_not_stop_the_run(tmp_path: Path):
    write_scene_shards(tmp_path / "shards", (60,), {"txt": dict.fromkeys(range(0, 60, 4), b" ")})
    assert train(tiny_settings(tmp_path, tmp_path / "out", log_steps=20)) is not None
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()][-1:]
    assert line["train/no_caption"] == 20 * 24 / 4
    assert line["train/broken"] == 0
