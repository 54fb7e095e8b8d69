"""Evaluation examples: read from any registered layout, encoded once, with their labels as class numbers."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dedup.eval_sets.read import read_examples
from trainer.config import EvalSetConfig
from trainer.errors import TrainerError
from trainer.evaluation.models import Encoder
from trainer.evaluation.prompts import PLAIN_TEMPLATES, Prompts, plain_name

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class EncodedSet:
    """The readable, labelled examples of a set."""

    eval_ids: list[str]
    labels: list[str]
    features: Tensor  # (n, D), as the model gives them
    left_out: int  # examples without a readable image or a label


class _Reader:
    """Hands out images and remembers whose they are until their features come back."""

    def __init__(self, source: EvalSetConfig) -> None:
        self._source = source
        self.waiting: list[tuple[str, str]] = []  # eval_id, label
        self.left_out = 0

    def images(self) -> Iterator[bytes]:
        source = self._source
        for example in read_examples(source.kind, source.path, image_column=source.image, label_column=source.label):
            if example.failure == "other_file":
                continue
            if example.failure or example.label is None:
                self.left_out += 1
                continue
            self.waiting.append((example.eval_id, example.label))
            yield example.encoded

    def take(self, readable: list[bool]) -> list[tuple[str, str]]:
        """Return whose features the readable images of the next batch are."""
        batch, self.waiting = self.waiting[: len(readable)], self.waiting[len(readable) :]
        self.left_out += readable.count(False)
        return list(compress(batch, readable))


def encode_set(encoder: Encoder, source: EvalSetConfig) -> EncodedSet:
    """Read and encode a set.

    Raises:
        TrainerError: it cannot be read, has no labelled example, or two of one name.
    """
    reader = _Reader(source)
    parts: list[Tensor] = []
    kept: list[tuple[str, str]] = []
    try:
        for features, readable in encoder.encode_images(reader.images()):
            kept += reader.take(readable)
            if len(features):
                parts.append(features)
    except (OSError, ValueError) as error:
        raise TrainerError(f"evaluation set {source.name}: {error}") from error
    if not kept:
        raise TrainerError(f"evaluation set {source.name}: no example at {source.path} has an image and a label")
    eval_ids, labels = (list(column) for column in zip(*kept, strict=True))
    repeated, times = Counter(eval_ids).most_common(1)[0]
    if times > 1:
        raise TrainerError(
            f"evaluation set {source.name}: {times} examples are called {repeated!r}: rename all but one"
        )
    return EncodedSet(eval_ids, labels, torch.cat(parts), reader.left_out)


def number_labels(name: str, labels: list[str], prompts: Prompts | None, *, several: bool) -> tuple[Prompts, Bools]:
    """Return the prompts to use and which classes each example has, (n, classes).

    A label is a class's number, or its name (case, "_" and "-" aside), or, where labels are codes such as WordNet ids,
    as many as there are classes, its place in their sorted order. With `several`, a label lists classes with commas
    between. Without prompts the labels are the classes.

    Raises:
        TrainerError: the labels do not fit the classes.
    """
    lists = [label.split(",") if several else [label] for label in labels]
    distinct = sorted({label.strip() for one in lists for label in one})
    if prompts is None:
        prompts = Prompts(tuple((plain_name(label),) for label in distinct), PLAIN_TEMPLATES)
        numbers = {label: number for number, label in enumerate(distinct)}
    else:
        numbers = _numbers(name, distinct, prompts)
    positive = np.zeros((len(labels), len(prompts.classes)), np.bool_)
    for row, one in enumerate(lists):
        positive[row, [numbers[label.strip()] for label in one]] = True
    return prompts, positive


def _numbers(name: str, distinct: list[str], prompts: Prompts) -> dict[str, int]:
    count = len(prompts.classes)
    if all(label.isdecimal() and int(label) < count for label in distinct):
        return {label: int(label) for label in distinct}
    by_name = {_plain(alias): number for number, names in enumerate(prompts.classes) for alias in names}
    if all(_plain(label) in by_name for label in distinct):
        return {label: by_name[_plain(label)] for label in distinct}
    if len(distinct) == count:
        return {label: number for number, label in enumerate(distinct)}
    unknown = next(label for label in distinct if _plain(label) not in by_name)
    raise TrainerError(
        f"evaluation set {name}: label {unknown!r} is none of the {count} class names, and {len(distinct)} distinct "
        "labels cannot be matched by order: correct the labels, or the prompts in evaluate.prompts"
    )


def _plain(label: str) -> str:
    return plain_name(label.replace("-", " ")).casefold()
