"""`wit demo --train`: the tables it adds, the prompts it writes, and the accuracies it prints beside chance."""

import io
import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.cli.main import main
from pipeline.demo import train as demo_train
from pipeline.demo.train import accuracy_table, curve_table, score_auc, write_prompts
from pipeline.errors import UserError


def test_the_tables_are_ones_the_trainer_accepts(tmp_path: Path):
    config = pytest.importorskip("trainer.config")
    sets = '[[evals]]\nname = "objects"\nkind = "folder"\npath = "evals/objects"\n'  # the demo's config has some
    document = tomllib.loads(f'workspace = "work"\n{sets}{demo_train._TABLES}')
    settings = config.settings_from(document, tmp_path)
    assert settings.train.text == "bag-of-words"
    assert settings.evaluate.prompts == str(tmp_path / "prompts.json")


def test_prompts_name_each_folder_of_a_set(tmp_path: Path):
    for name in ("red circle", "blue star"):
        (tmp_path / "evals" / "objects" / name).mkdir(parents=True)
    write_prompts(tmp_path, ["objects"])
    prompts = json.loads((tmp_path / "prompts.json").read_text())
    assert prompts["objects"]["classes"] == ["blue star", "red circle"]
    assert all("{}" in template for template in prompts["objects"]["templates"])


def test_accuracies_stand_beside_chance_and_apart_for_clean_and_overlap():
    parts = {"all": (7, 10), "clean": (5, 8), "overlap": (2, 2)}
    accuracy = {name: {"count": count, "total": total} for name, (count, total) in parts.items()} | {"p_value": 0.39}
    none = {"count": 0, "total": 0}
    clean = {"all": accuracy["all"], "clean": accuracy["all"], "overlap": none, "p_value": 1.0}
    sets = [
        {"name": "objects", "accuracies": [{"model": "another", **clean}, {"model": "demo", **accuracy}]},
        {"name": "patterns", "accuracies": [{"model": "demo", **clean}]},
        {"name": "unscored", "accuracies": []},
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(accuracy_table(sets, {"objects": 64, "patterns": 5, "unscored": 2}))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["objects", "1.6%", "70.0%", "of", "10", "62.5%", "of", "8", "100.0%", "of", "2", "0.390"] in lines
    assert ["patterns", "20.0%", "70.0%", "of", "10", "70.0%", "of", "10", "none"] in lines
    assert not any("unscored" in line for line in lines)


class Reader:
    """Scores a pair by what it is told that pictures show; `of(shown, caption)` is the score."""

    def __init__(self, of: Callable[[str, str], float]) -> None:
        self.of, self.shown = of, dict[bytes, str]()

    def score(self, images: Sequence[bytes], captions: Sequence[str]) -> np.ndarray:
        if not self.shown:  # the true captions come first
            self.shown = dict(zip(images, captions, strict=True))
        pairs = zip(images, captions, strict=True)
        return np.array([self.of(self.shown[image], caption) for image, caption in pairs], np.float32)


def test_the_area_under_the_curve_of_true_against_shuffled_captions():
    perfect = Reader(lambda shown, caption: float(shown == caption))
    assert score_auc(perfect, 7, 60) > 0.99  # a few captions are those of two pictures
    assert len(perfect.shown) == 60
    assert score_auc(Reader(lambda shown, caption: 0.3), 7, 20) == 0.5
    assert score_auc(Reader(lambda shown, caption: -float(shown == caption)), 7, 60) < 0.01
    counts = Reader(lambda shown, caption: len(set(shown.split()) & set(caption.split())))
    area = score_auc(counts, 7, 40)
    true = [len(set(text.split())) for text in counts.shown.values()]
    texts = list(counts.shown.values())
    other = [len(set(a.split()) & set(b.split())) for a, b in zip(texts, texts[1:] + texts[:1], strict=True)]
    assert area == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in true for b in other]))


def test_a_training_that_fails_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match=r"`python -m trainer\.no_such_module` failed"):
        demo_train._run("trainer.no_such_module")


def test_training_gets_a_larger_world_unless_told(monkeypatch: pytest.MonkeyPatch):
    worlds: list[int] = []
    monkeypatch.setattr("pipeline.demo.run.run_demo", lambda directory, **keys: worlds.append(keys["pictures"]) or 1)
    for arguments in (["demo"], ["demo", "--train"], ["demo", "--train", "--pictures", "200"]):
        assert main(arguments) == 1
    assert worlds == [4_500, 15_000, 200]


def test_the_curve_has_a_row_for_each_evaluation(tmp_path: Path):
    lines = [
        {"step": 50, "train/loss": 4.25},
        {"step": 100, "train/loss": 3.5},
        {"step": 100, "val/objects": 0.25, "val/shapes": 0.5},
        {"step": 150, "train/loss": 3.0},
        {"step": 200, "val/objects": 0.75, "val/shapes": 1.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    console = Console(record=True, width=80)
    console.print(curve_table(path, ["objects", "shapes", "unscored"]))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert rows[1:] == [
        ["step", "loss", "objects", "shapes"], ["100", "3.500", "25.0%", "50.0%"], ["200", "3.000", "75.0%", "100.0%"]
    ]  # fmt: skip
