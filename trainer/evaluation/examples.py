"""Evaluation examples: read from any registered layout, encoded once, with their labels as class numbers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dedup.eval_sets import find_set
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.read import read_examples
from trainer.errors import TrainerError
from trainer.evaluation.models import Encoder
from trainer.evaluation.prompts import Prompts, plain_name, templates_for, wordnet_prompts

Bools = NDArray[np.bool_]

_SETS_OF_NUMBERS = {"mnist", "svhn", "clevr-counts"}
"""Registered sets whose classes are numbers, so that a label "7" is a name."""
_WORDNET_ID = re.compile(r"n\d{8}")
_CODE = re.compile(r"\S*\d\S*|[A-Z]+")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class EncodedSet:
    """The readable, labelled examples of a set."""

    eval_ids: list[str]
    labels: list[str]
    features: Tensor  # (n, D), not normalised
    left_out: int  # examples without a readable image or a label


class _Reader:
    """Yields images, and keeps their ids and labels until their features are computed."""

    def __init__(self, source: EvalSetConfig) -> None:
        self._source = source
        self.waiting: list[tuple[str, str]] = []  # eval_id, label
        self.left_out = 0

    def images(self) -> Iterator[bytes]:
        source = self._source
        for example in read_examples(source.kind, source.path, image_column=source.image, label_column=source.label):
            if example.failure == "other_file":
                continue
            label = (example.label or "").strip(", \t\n")  # an empty one, or only commas, names no class
            if example.failure or not label:
                self.left_out += 1
                continue
            self.waiting.append((example.eval_id, label))
            yield example.encoded

    def take(self, readable: list[bool]) -> list[tuple[str, str]]:
        """Return the eval_id and label of each readable image of the next batch."""
        batch, self.waiting = self.waiting[: len(readable)], self.waiting[len(readable) :]
        self.left_out += readable.count(False)
        return list(compress(batch, readable))


def encode_set(encoder: Encoder, source: EvalSetConfig) -> EncodedSet:
    """Read and encode a set.

    Raises:
        TrainerError: it cannot be read, or has no labelled example.
    """
    reader = _Reader(source)
    parts: list[Tensor] = []
    kept: list[tuple[str, str]] = []
    with _named_errors(source):
        for features, readable in encoder.encode_images(reader.images()):
            kept += reader.take(readable)
            if len(features):
                parts.append(features)
        if not kept:
            raise ValueError(f"no example at {source.path} has an image and a label")
    eval_ids, labels = (list(column) for column in zip(*kept, strict=True))
    return EncodedSet(eval_ids, labels, torch.cat(parts), reader.left_out)


def read_labels(source: EvalSetConfig) -> list[str]:
    """Return the labels of the examples that have an image, which is not decoded.

    Raises:
        TrainerError: the set cannot be read, or has no labelled example.
    """
    reader = _Reader(source)
    with _named_errors(source):
        for _ in reader.images():
            pass
        if not reader.waiting:
            raise ValueError(f"no example at {source.path} has an image and a label")
    return [label for _, label in reader.waiting]


@contextmanager
def _named_errors(source: EvalSetConfig) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise TrainerError(f"evaluation set {source.name}: {error}") from error


def number_labels(name: str, labels: list[str], prompts: Prompts | None, *, several: bool) -> tuple[Prompts, Bools]:
    """Return the prompts to use and which classes each example has, (n, classes).

    A label is a class's name (case, spaces, "_" and "-" aside); or its number, from 0, or from 1 where all of 1 to the
    number of classes occur; or, if labels are codes such as WordNet ids, as many as there are classes, its rank in
    their order. With `several`, a label is a comma-separated list of classes. Without prompts the labels are the
    classes, WordNet ids by their names.

    Raises:
        TrainerError: the labels do not match the classes, or could match them in two ways.
    """
    lists = [_parts(label) if several else [label.strip()] for label in labels]
    distinct = sorted({label for one in lists for label in one})
    if prompts is None:
        prompts = _prompts_of_labels(name, distinct)
        numbers = {label: number for number, label in enumerate(distinct)}
    else:
        numbers = _numbers(name, distinct, prompts)
    positive = np.zeros((len(labels), len(prompts.classes)), np.bool_)
    for row, one in enumerate(lists):
        positive[row, [numbers[label] for label in one]] = True
    return prompts, positive


def _prompts_of_labels(name: str, distinct: list[str]) -> Prompts:
    """Return prompts whose classes are the labels, in their order."""
    if all(map(_WORDNET_ID.fullmatch, distinct)) and (prompts := wordnet_prompts(distinct)) is not None:
        return prompts
    _check_names(name, distinct)
    _check_part(name, len(distinct))
    return Prompts(tuple((plain_name(label),) for label in distinct), templates_for(name), "the labels")


def _parts(label: str) -> list[str]:
    return [part.strip() for part in label.split(",") if part.strip()]


def _check_names(name: str, distinct: list[str]) -> None:
    """Reject labels that mean nothing to a model: the prompt would be "a photo of a n01443537"."""
    nameless = [label for label in distinct if _WORDNET_ID.fullmatch(label)]
    if name not in _SETS_OF_NUMBERS and all(label.removeprefix("-").isdecimal() for label in distinct):
        nameless = distinct
    if nameless:
        raise TrainerError(
            f"evaluation set {name}: label {nameless[0]!r} is not a name that a prompt can use: add the set's classes "
            "and templates to the file of evaluate.prompts"
        )


def _check_part(name: str, classes: int) -> None:
    """Reject the whole of ObjectNet, 313 classes, of which the paper uses those that ImageNet has."""
    known = find_set(name)
    if name == "objectnet" and known is not None and classes > known.classes:
        raise TrainerError(
            f"evaluation set {name}: its labels are {classes} classes, the paper's are the {known.classes} that "
            "ImageNet has: keep the folders that ObjectNet's mappings/objectnet_to_imagenet_1k.json lists, or give "
            "the set another name"
        )


def _numbers(name: str, distinct: list[str], prompts: Prompts) -> dict[str, int]:
    """Return the class of each label: all by name, else all by number, else all by order."""
    count = len(prompts.classes)
    by_name = _by_name(prompts)
    unknown = [label for label in distinct if _plain(label) not in by_name]
    if not unknown:
        return {label: _only_class(name, label, by_name[_plain(label)]) for label in distinct}
    if len(unknown) == len(distinct):
        if all(label.isdecimal() for label in distinct):
            return _by_number(name, distinct, count)
        if len(distinct) == count and _are_codes(distinct):
            return {label: number for number, label in enumerate(distinct)}
    raise TrainerError(
        f"evaluation set {name}: label {unknown[0]!r} is not one of the {count} class names, and {len(distinct)} "
        "distinct labels cannot be matched by order: correct the labels, or the prompts in evaluate.prompts"
    )


def _only_class(name: str, label: str, classes: list[int]) -> int:
    if len(classes) > 1:
        raise TrainerError(
            f"evaluation set {name}: label {label!r} is the name of {len(classes)} classes: number the classes from 0, "
            "or correct the prompts in evaluate.prompts"
        )
    return classes[0]


def _by_name(prompts: Prompts) -> dict[str, list[int]]:
    """Return the classes of each name: ImageNet has two with the name "missile"."""
    classes: dict[str, list[int]] = {}
    for number, names in enumerate(prompts.classes):
        for name in {_plain(name) for name in names}:
            classes.setdefault(name, []).append(number)
    return classes


def _by_number(name: str, distinct: list[str], count: int) -> dict[str, int]:
    numbers = {label: int(label) for label in distinct}
    used = set(numbers.values())
    if used == set(range(1, count + 1)):
        return {label: number - 1 for label, number in numbers.items()}
    if max(used) < count and used != set(range(1, count)):  # 1 to count - 1: is 0 missing, or `count`?
        return numbers
    raise TrainerError(
        f"evaluation set {name}: {len(used)} numeric labels from {min(used)} to {max(used)} are ambiguous for {count} "
        "classes: number the classes from 0, or from 1 without gaps, or use their names"
    )


def _are_codes(distinct: list[str]) -> bool:
    """Return whether labels are codes with one order: n01440764, AD; not words, nor "class10" beside "class9"."""
    if not all(_CODE.fullmatch(label) for label in distinct):
        return False
    return distinct == sorted(distinct, key=lambda code: [int(p) if p.isdecimal() else p for p in _DIGITS.split(code)])


def _plain(label: str) -> str:
    """Return one form for all spellings of a name: "Apply Eye Makeup", "apply_eye_makeup" and "ApplyEyeMakeup"."""
    return re.sub(r"[\s_]+|(?<!^)-", "", label.strip()).casefold()  # "-1" is not "1"
