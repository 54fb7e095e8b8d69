"""What a build of the recorded web writes, file by file: made again by the tests and compared with tests/golden/.

`make golden` rewrites tests/golden/ after a change of the outputs that is intended.
"""

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from support.recorded_web import make_project, tree
from support.wiki_files import multistream, page
from torch import Tensor

from pipeline.allowlist import count
from pipeline.allowlist.build import Inputs, build_allowlist
from pipeline.beam.options import parse_beam_options
from pipeline.build import run_build
from pipeline.engine.progress import Progress
from pipeline.project import Project
from pipeline.stages import evals, fetched, index, pairs, plan, report, shards
from pipeline.stages.dedup import steps as dedup
from queries.recipe import Recipe
from trainer.config import EvalSetConfig
from trainer.evaluation.prompts import Prompts
from trainer.evaluation.zero_shot import write_results, zero_shot

FOLDER = Path(__file__).parent.parent / "golden"
COMMAND = "make golden"

STAGES: dict[str, ModuleType] = {
    "words": count,
    "titles": count,
    "pairs": pairs,
    "plan": plan,
    "fetched": fetched,
    "evals": evals,
    "dedup": dedup,
    "shards": shards,
    "index": index,
    "report": report,
}
"""The folder that a stage fills -> the module with its VERSION, in the order in which they run."""

LIBRARIES = ("numpy", "opencv-python-headless", "pdqhash", "pillow", "pyarrow", "simplejpeg")
"""Those that decide bytes: encoders, decoders, writers."""

_CLASSES = ("class0", "class1")


def make(folder: Path) -> dict[str, bytes]:
    """Build the recorded web in an empty folder; return name -> content of the files of tests/golden/."""
    work = folder / "work"
    results = _build(make_project(folder / "set", control=100), work_of_counts=work)
    root = folder / "set/work"
    outputs = {stage: tree(work if module is count else root, stage) for stage, module in STAGES.items()}
    facts = {
        "outputs": outputs,
        "versions": {module.__name__: module.VERSION for module in STAGES.values()},
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    with tarfile.open(root / "shards/00000.tar") as tar:
        name = next(name for name in tar.getnames() if name.endswith(".json"))
        sample = tar.extractfile(name)
        assert sample is not None
        return {
            "outputs.json": json.dumps(facts, indent=1).encode() + b"\n",
            "sample.json": sample.read(),
            "manifest.json": (root / "shards/manifest.json").read_bytes(),
            "overlap.json": (root / "report/overlap.json").read_bytes(),
            "results.parquet": Path(results).read_bytes(),
        }


def _build(config: Path, work_of_counts: Path) -> str:
    """Build the set, evaluate a model on it, and report; count a small Wikipedia. Return the path of the results."""
    options = parse_beam_options([])
    _count(config.parent, work_of_counts)
    with patch("pipeline.build.code_version", lambda: "golden"):  # a release changes no data
        project = Project.load(config)
        run_build(project, options, progress=Progress(None))
        source = EvalSetConfig(name="shapes", kind="folder", path=str(config.parent / "evals"))
        result = zero_shot(_Encoder(), source, Prompts(tuple((name,) for name in _CLASSES), ("{}",)))  # type: ignore[arg-type]
        results = write_results(str(config.parent / "work"), "model", result)
        run_build(project, options, progress=Progress(None))
    return results


def _count(folder: Path, work: Path) -> None:
    pages = [page(f"Article {n}", f"red house {'dog ' * n} ice cream") for n in range(9)]
    dump, views = folder / "dump-multistream.xml.bz2", folder / "views"
    dump.write_bytes(multistream(pages))
    views.write_bytes(b"xx.wikipedia Article_1 1 desktop 5 A5\nxx.wikipedia Article_2 1 desktop 9 A9\n")
    inputs, asked = Inputs((str(dump),), (str(views),)), Recipe(size=20, min_count=1, min_bigram_count=1, min_views=1)
    out = str(folder / "counted.parquet")
    build_allowlist(inputs, asked, out, work=str(work), options=parse_beam_options([]), progress=Progress(None))


class _Encoder:
    """A model that is right about every second image; exact numbers on every machine."""

    name = "model"
    scale = 1.0

    def encode_images(self, images: Iterator[bytes]) -> Iterator[tuple[Tensor, list[bool]]]:
        for number, _ in enumerate(images):
            yield torch.eye(2)[[number % 2]], [True]

    def encode_texts(self, texts: list[str]) -> Tensor:
        return torch.eye(2)[[_CLASSES.index(text) for text in texts]]


def committed() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in FOLDER.iterdir()}


def differences(golden: dict[str, bytes], made: dict[str, bytes]) -> list[str]:
    """Return one line per stage, or per file of none, that differs: what differs and what to do. Empty if nothing does.

    A change goes on to later stages, which need no new VERSION for it: they read other inputs.
    """
    old, new = json.loads(golden["outputs.json"]), json.loads(made["outputs.json"])
    lines = []
    for stage, module in STAGES.items():
        was, now = old["outputs"].get(stage, {}), new["outputs"][stage]
        if was != now:
            names = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
            lines.append(
                f"{stage}/: {len(names)} files differ, such as {names[0]}; {_advice(module.__name__, old, new)}"
            )
    if not lines:
        lines = [
            f"{name} differs: if that is intended, run `{COMMAND}`"
            for name in sorted(golden.keys() | made.keys())
            if name != "outputs.json" and golden.get(name) != made.get(name)
        ]
    return lines


def _advice(module: str, old: Any, new: Any) -> str:
    changed = [
        f"{name} {old['libraries'].get(name)} -> {new['libraries'][name]}"
        for name in LIBRARIES
        if old["libraries"].get(name) != new["libraries"][name]
    ]
    if changed:
        return f"installed is {', '.join(changed)}: run `{COMMAND}` if that is intended (make lock), else `make setup`"
    if old["versions"].get(module) != new["versions"][module]:
        return f"VERSION of {module} was raised: run `{COMMAND}`"
    return (
        f"if this is intended and no earlier stage is named above, raise VERSION in {module.replace('.', '/')}.py; "
        f"then run `{COMMAND}`"
    )


def write(files: dict[str, bytes]) -> None:
    for old in FOLDER.glob("*"):
        old.unlink()
    FOLDER.mkdir(exist_ok=True)
    for name, content in files.items():
        (FOLDER / name).write_bytes(content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = make(Path(scratch))
    for line in differences(committed(), made) if FOLDER.exists() and any(FOLDER.iterdir()) else ["everything is new"]:
        print(line)
    write(made)
    print(f"{FOLDER}: {len(made)} files written, sha256 {hashlib.sha256(made['outputs.json']).hexdigest()[:12]}")
