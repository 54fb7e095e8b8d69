"""A small model learns what captions say, on pictures it has never seen; not from shuffled captions, nor as well from
pairs that nobody balanced."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import tiny_settings
from support.scene_shards import draw_scene, scene_of, write_scene_shards

from dedup.eval_sets.config import EvalSetConfig
from trainer.config import EvaluateConfig
from trainer.evaluation.models import open_encoder
from trainer.evaluation.prompts import Prompts
from trainer.evaluation.zero_shot import zero_shot
from trainer.scoring import open_scorer
from trainer.train import train

CLASSES = [" ".join(scene_of(number)) for number in range(12)]
ARCHITECTURE = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 48, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> EvalSetConfig:
    folder = tmp_path_factory.mktemp("held-out")
    for number in range(120):
        path = folder / " ".join(scene_of(number)) / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draw_scene(*scene_of(number), seed=1_000_000 + number))
    return EvalSetConfig(name="scenes", kind="folder", path=str(folder))


def _train(workspace: Path, *, steps: int = 300, **keys: Any) -> str:
    """Train on a workspace and return the folder of the model."""
    output = workspace / f"train-{len(list(workspace.iterdir()))}"
    recipe = {"batch": 48, "steps": steps, "warmup_steps": 20, "learning_rate": 3e-3, "checkpoint_steps": 1_000}
    model = {"model": "tiny-resnet", "text": "bag-of-words", "architecture": ARCHITECTURE}
    return str(train(tiny_settings(workspace, output, **model, **recipe, **keys)))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a model that was trained on true captions."""
    workspace = tmp_path_factory.mktemp("taught")
    write_scene_shards(workspace / "shards", (300, 300))
    return _train(workspace)


def _accuracy(model: str, held_out: EvalSetConfig) -> float:
    """Return a model's zero-shot accuracy on 12 classes of held-out pictures."""
    encoder = open_encoder(model, None, None, EvaluateConfig(device="cpu"))
    prompts = Prompts(tuple((name,) for name in CLASSES), ("a {}",))
    return zero_shot(encoder, held_out, prompts).value


@pytest.mark.slow
def test_true_captions_score_higher_than_shuffled_ones(taught: str):
    scorer = open_scorer({"checkpoint": taught, "architecture": None, "batch": 32, "device": "cpu"})
    images = [draw_scene(*scene_of(number), seed=2_000_000 + number) for number in range(240)]
    true = scorer.score(images, [f"a {CLASSES[number % 12]}" for number in range(240)])
    shuffled = scorer.score(images, [f"a {CLASSES[(number + 1 + number % 11) % 12]}" for number in range(240)])
    assert true.dtype == np.float32
    assert np.abs(true).max() <= 1
    area = float((true[:, None] > shuffled).mean() + (true[:, None] == shuffled).mean() / 2)
    print(f"AUC of true against shuffled captions: {area:.3f}")
    assert area >= 0.9


@pytest.mark.slow
def test_a_model_learns_from_captions_but_not_from_shuffled_ones(taught: str, tmp_path: Path, held_out: EvalSetConfig):
    random = np.random.default_rng(0)
    captions = {n: f"a {CLASSES[int(random.integers(12))]}".encode() for n in range(600)}
    write_scene_shards(tmp_path / "shuffled" / "shards", (300, 300), {"txt": captions})
    learned = _accuracy(taught, held_out)
    shuffled = _accuracy(_train(tmp_path / "shuffled"), held_out)
    print(f"true captions {learned:.1%}, shuffled captions {shuffled:.1%}, chance {1 / 12:.1%}")
    assert learned >= 0.9
    assert shuffled <= 0.35


@pytest.mark.slow
def test_balance_by_query_teaches_the_tail(tmp_path: Path, held_out: EvalSetConfig):
    """The same pool, in which one class of twelve has 78 % of the pairs, and as many steps with the cap."""
    kinds = np.random.default_rng(0).permutation(np.repeat(np.arange(12), [780] + [20] * 11))
    write_scene_shards(tmp_path / "shards", (500, 500), scene=lambda number: scene_of(int(kinds[number])))
    for shard in range(2):
        queries = [[int(kind)] for kind in kinds[500 * shard : 500 * (shard + 1)]]
        columns = {"status": ["success"] * 500, "query_ids": pa.array(queries, pa.list_(pa.int32()))}
        pq.write_table(pa.table(columns), tmp_path / "shards" / f"{shard:05d}.parquet")
    unbalanced = _accuracy(_train(tmp_path, steps=120), held_out)
    balanced = _accuracy(_train(tmp_path, steps=120, balance_cap=20), held_out)
    print(f"balanced {balanced:.1%}, unbalanced {unbalanced:.1%}, chance {1 / 12:.1%}")
    assert balanced >= unbalanced + 0.1
