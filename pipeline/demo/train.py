"""`wit demo --train`: train a tiny model on the demo's shards, and evaluate it on the demo's evaluation sets.

Prints the accuracy and chance, and separately the accuracy on examples whose images are in the training data (Overlap)
and on the others (Clean), as the overlap report then does too; and how well its scores (`[scores]`) tell true captions
from shuffled ones.
"""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.config.filters import ScoresConfig
from pipeline.demo.captions import say
from pipeline.demo.drawing import draw, encode
from pipeline.demo.scenes import training_scenes
from pipeline.errors import UserError
from pipeline.project import Project
from pipeline.stages.filtered import Scorer, open_scorer
from pipeline.stages.report import write_reports

_MODEL = "demo"
_NEW_PICTURES = 500
_TABLES = """
[train]                                 # `wit train -c wit.toml`
model = "tiny-resnet"                   # -> "ViT-B/32", with the paper's other values
text = "bag-of-words"                   # -> remove from here down
crop_scale = [0.8, 1.0]
epochs = 18
weight_decay = 1.0
max_logit_scale = 33
workers = 1
threads = 2
log_steps = 50
evaluate_steps = 250                    # the accuracy on [[evals]] during training

[evaluate]                              # `wit evaluate -c wit.toml --checkpoint work/train/model`
prompts = "prompts.json"                # class names and templates
"""


def train_demo(directory: Path) -> None:
    """Train on a finished demo, evaluate, write the report again, and print the accuracies.

    Raises:
        UserError: the training or the evaluation failed; it has printed the reason.
    """
    config = directory / "wit.toml"
    if "\n[train]" not in config.read_text(encoding="utf-8"):
        with config.open("a", encoding="utf-8") as file:
            file.write(_TABLES)
    sets = [path.name for path in sorted((directory / "evals").iterdir())]
    write_prompts(directory, sets)
    _run("trainer", "-c", str(config))
    checkpoint = str(directory / "work" / "train" / "model")
    _run("trainer.evaluation", "-c", str(config), "--checkpoint", checkpoint, "--name", _MODEL)
    project = Project.load(config)
    write_reports(project.workspace, project.config, project.load_allowlist())
    report = json.loads((directory / "work" / "report" / "overlap.json").read_text(encoding="utf-8"))
    classes = {name: len(list((directory / "evals" / name).iterdir())) for name in sets}
    Console().print(curve_table(directory / "work" / "train" / "metrics.jsonl", sets))
    Console().print(accuracy_table(report["sets"], classes))
    scorer = open_scorer(ScoresConfig(checkpoint=checkpoint))
    area = score_auc(scorer, project.config.seed)
    Console().print(f"scores of {_NEW_PICTURES} new pictures: AUC of true against shuffled captions {area:.3f}")
    print(f"curves: {directory / 'work' / 'report' / 'training.html'}")


def score_auc(scorer: Scorer, seed: int, pictures: int = _NEW_PICTURES) -> float:
    """Return the area under the curve of true against shuffled captions: how often a true pair scores higher.

    The pictures are like those of the demo's web, but new: of another seed.
    """
    scenes = list(islice(training_scenes(seed + 1_000_003), pictures))
    images = [encode(draw(scene), "JPEG") for scene in scenes]
    captions = [say(scene, "en") for scene in scenes]
    true = np.sort(scorer.score(images, captions))
    shuffled = scorer.score(images, captions[1:] + captions[:1])  # scenes are independent of each other
    above = pictures - np.searchsorted(true, shuffled, "right")
    equal = pictures - np.searchsorted(true, shuffled, "left") - above
    return float((above + equal / 2).mean() / pictures)


def write_prompts(directory: Path, sets: list[str]) -> None:
    """Write the classes of each set, which are its folders, with templates in the words of the demo's captions."""
    prompts = {
        name: {
            "classes": sorted(path.name for path in (directory / "evals" / name).iterdir()),
            "templates": ["a {}", "a small {}", "a large {}"] if name == "objects" else ["a {}", "on a {}"],
        }
        for name in sets
    }
    (directory / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n", encoding="utf-8")


def curve_table(metrics: Path, sets: list[str]) -> Table:
    """Return the training loss and the sets' accuracies during training, from the trainer's `metrics.jsonl`."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    scored = [name for name in sets if any(f"val/{name}" in line for line in lines)]
    table = Table("step", "loss", *scored, box=None, pad_edge=False, title="during training")
    loss = ""
    for line in lines:
        loss = f"{line['train/loss']:.3f}" if "train/loss" in line else loss
        if any(f"val/{name}" in line for name in scored):
            table.add_row(str(line["step"]), loss, *(f"{line[f'val/{name}']:.1%}" for name in scored))
    return table


def accuracy_table(sets: list[dict[str, Any]], classes: dict[str, int]) -> Table:
    """Return the demo model's zero-shot accuracies on All, Clean and Overlap, beside chance."""
    table = Table("set", "chance", "all", "clean", "overlap", "p", box=None, pad_edge=False, title="zero-shot accuracy")
    for entry in sets:
        for accuracy in (score for score in entry["accuracies"] if score["model"] == _MODEL):
            parts = [_share(accuracy[part]) for part in ("all", "clean", "overlap")]
            p_value = f"{accuracy['p_value']:.3f}" if accuracy["overlap"]["total"] else ""
            table.add_row(entry["name"], f"{1 / classes[entry['name']]:.1%}", *parts, p_value)
    return table


def _share(part: dict[str, Any]) -> str:
    return f"{part['count'] / part['total']:.1%} of {part['total']}" if part["total"] else "none"


def _run(module: str, *arguments: str) -> None:
    finished = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if finished.returncode:
        raise UserError(
            f"`python -m {module}` failed; if a package is missing, run pip install '.[train]' in the project's folder"
        )
