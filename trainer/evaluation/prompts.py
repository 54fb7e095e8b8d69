"""Class names and prompt templates of evaluation sets.

ImageNet's come with open_clip, also for WordNet ids of its classes (ImageNet-A, ImageNet-R). Others are read from a
file: JSON or TOML of `{set: {classes: [], templates: []}}`, or a Markdown file of `## Title` sections with Python lists
`classes` and `templates`, the format of OpenAI's published prompts. A set without an entry is prompted with the names
of its labels: in ImageNet's templates if it was made after ImageNet's classes, else "a photo of a {}."
"""

import ast
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from timm.data.imagenet_info import ImageNetInfo

from dedup.eval_sets import find_set
from trainer.errors import TrainerConfigError, one_line

Origin = Literal["the paper's", "a file", "WordNet's names", "the labels"]
"""Where prompts are from. The paper's: ImageNet's, or a file in the form of OpenAI's."""

PLAIN_TEMPLATES = ("a photo of a {}.",)
_LIKE_IMAGENET = {"imagenet-a", "imagenet-r", "objectnet", "imagenet-vid", "youtube-bb"}
"""Sets of the paper's section 3.3, on the robustness of classifiers of ImageNet, whose labels may be names."""
_SECTION = re.compile(r"^## (?P<title>.+?)\s*$(?P<body>.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_LISTS = re.compile(r"^(classes|templates) = (\[.*?^\])", re.MULTILINE | re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_OTHER_TITLES = {
    "voc2007": "PascalVOC2007",
    "fer2013": "FacialEmotionRecognition2013",
    "rendered-sst2": "SST2",
    "kitti-distance": "KITTI",
}
_IMAGENET_CLASSES = {"imagenet", "imagenetv2", "imagenetsketch", "imagenetblurry"}


@dataclass(frozen=True)
class Prompts:
    """A set's class names, one or more per class, and its templates."""

    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    origin: Origin = "a file"

    def texts(self, label: int) -> list[str]:
        """Return every name of a class in every template."""
        return [template.replace("{}", name) for name in self.classes[label] for template in self.templates]


def plain_name(label: str) -> str:
    """Return a label as words: "golden_retriever" -> "golden retriever"."""
    return re.sub(r"[_\s]+", " ", label).strip()


def find_prompts(name: str, published: Mapping[str, Prompts]) -> Prompts | None:
    """Return the prompts of a set: from the file, by its name or title, or ImageNet's."""
    known = find_set(name)
    for alias in (name, known.title if known else name, _OTHER_TITLES.get(name, name)):
        if _slug(alias) in published:
            return published[_slug(alias)]
    if _slug(name) in _IMAGENET_CLASSES:
        return Prompts(tuple((label,) for label in IMAGENET_CLASSNAMES), _imagenet_templates(), "the paper's")
    return None


def templates_for(name: str) -> tuple[str, ...]:
    """Return the templates for the labels of a set without prompts of its own."""
    return _imagenet_templates() if name in _LIKE_IMAGENET else PLAIN_TEMPLATES


def wordnet_prompts(ids: list[str]) -> Prompts | None:
    """Return ImageNet's templates with one class for each WordNet id, or None if some id has no name.

    Classes of ImageNet have the name that CLIP gave them, others (of ImageNet Vid) all names that WordNet gives.
    """
    names, others = _imagenet_names(), _wordnet()
    classes = [names.get(one) or others.get(one) for one in ids]
    if not all(classes):
        return None
    origin: Origin = "the paper's" if names.keys() >= set(ids) else "WordNet's names"
    return Prompts(tuple(found for found in classes if found), _imagenet_templates(), origin)


def _imagenet_templates() -> tuple[str, ...]:
    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


@cache
def _imagenet_names() -> dict[str, tuple[str, ...]]:
    """Return CLIP's name of each class of ImageNet by its WordNet id; both lists are in the order of the ids."""
    ids = ImageNetInfo("imagenet-1k").label_names()
    return {one: (name,) for one, name in zip(ids, IMAGENET_CLASSNAMES, strict=True)}


@cache
def _wordnet() -> dict[str, tuple[str, ...]]:
    """Return the names of 21,841 WordNet ids, those of the whole of ImageNet."""
    info = ImageNetInfo("imagenet-22k")
    return {one: tuple(info.label_name_to_description(one).split(", ")) for one in info.label_names()}


def read_prompts(path: Path) -> dict[str, Prompts]:
    """Read a prompts file; the keys are the sets' names without case, spaces and punctuation.

    Raises:
        TrainerConfigError: it cannot be read, or holds no prompts.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            entries = _read_markdown(text)
        else:
            entries = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        origin: Origin = "the paper's" if path.suffix == ".md" else "a file"
        prompts = {_slug(name): _checked(entry, origin) for name, entry in entries.items()}
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TrainerConfigError(f"cannot read prompts from {path}: {one_line(error)}") from error
    if not prompts:
        raise TrainerConfigError(f"{path} holds no prompts: it needs `## Set` sections with `classes` and `templates`")
    return prompts


def _read_markdown(text: str) -> dict[str, dict[str, Any]]:
    sections = {}
    for section in _SECTION.finditer(text):
        lists = {name: ast.literal_eval(value) for name, value in _LISTS.findall(section["body"])}
        if {"classes", "templates"} <= lists.keys():
            sections[section["title"]] = lists
    return sections


def _checked(entry: Any, origin: Origin) -> Prompts:
    classes, templates = entry["classes"], entry["templates"]
    names = [[entry] if isinstance(entry, str) else entry for entry in classes]
    if not all(isinstance(part, list) and part for part in (classes, templates, *names)):
        raise ValueError("`classes` and `templates` must be non-empty lists of strings")
    for text in (*templates, *(name for class_names in names for name in class_names)):
        if not isinstance(text, str) or _SURROGATE.search(text):
            raise ValueError(f"{text!r} is not a valid string")
    if not all("{}" in template for template in templates):
        raise ValueError("every template must contain {}")
    return Prompts(tuple(map(tuple, names)), tuple(templates), origin)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
