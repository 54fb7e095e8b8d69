"""Zero-shot classification: one vector per class from its prompts, and the nearest one wins (CLIP section 3.1).

Per-example results go to `<workspace>/evals/<set>/results/<model>.parquet`, where the overlap report finds them.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dedup.eval_sets import Metric
from dedup.eval_sets.config import EvalSetConfig
from dedup.eval_sets.results import RESULTS, results_folder
from trainer.errors import TrainerError, one_line
from trainer.evaluation.examples import EncodedSet, encode_set, number_labels, read_labels
from trainer.evaluation.metrics import (
    chance,
    evaluate,
    has_several_classes,
    label_ranks,
    registered_metric,
    shown_name,
)
from trainer.evaluation.models import Encoder
from trainer.evaluation.prompts import Origin, Prompts
from trainer.remote_shards import filesystem_of, make_folder


@dataclass(frozen=True)
class ZeroShotResult:
    """A model's scores on a set."""

    name: str
    metric: str  # as it is shown
    value: float
    chance: float | None  # expected score of guessing, where that is known
    accuracy: float  # the fraction of `correct`
    examples: int
    left_out: int
    classes: int
    prompts: Origin
    table: pa.Table  # RESULTS


def classifier(encoder: Encoder, prompts: Prompts) -> Tensor:
    """Return one vector per class, (classes, D): its texts' features normalised, averaged, and normalised again."""
    texts = [prompts.texts(label) for label in range(len(prompts.classes))]
    features = encoder.encode_texts([text for class_texts in texts for text in class_texts])
    means = [rows.mean(dim=0) for rows in features.split([len(class_texts) for class_texts in texts])]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot(
    encoder: Encoder, source: EvalSetConfig, prompts: Prompts | None = None, examples: EncodedSet | None = None
) -> ZeroShotResult:
    """Classify a set; the metric is the registered one, accuracy for a set that is not registered.

    `examples`: the set's, if they have been encoded already.

    Raises:
        TrainerError: the set cannot be read, or its labels do not fit the prompts or the metric.
    """
    metric = registered_metric(source.name)
    examples = examples or encode_set(encoder, source)
    prompts, positive = number_labels(source.name, examples.labels, prompts, several=has_several_classes(metric))
    check_classes(source.name, metric, positive)
    similarity = F.normalize(examples.features, dim=-1) @ classifier(encoder, prompts).T
    scores = (similarity * encoder.scale).double().numpy()
    table = _table(examples.eval_ids, scores, positive, prompts)
    return ZeroShotResult(
        name=source.name,
        metric=shown_name(metric),
        value=evaluate(metric, scores, positive),
        chance=chance(metric, len(prompts.classes)),
        accuracy=float(table["correct"].to_numpy().mean()),
        examples=len(scores),
        left_out=examples.left_out,
        classes=len(prompts.classes),
        prompts=prompts.origin,
        table=table,
    )


def check_set(source: EvalSetConfig, prompts: Prompts | None) -> None:
    """Read the labels of a set, and no image, so that what is wrong with them shows before hours of training.

    Raises:
        TrainerError: as `zero_shot` does.
    """
    metric = registered_metric(source.name)
    _, positive = number_labels(source.name, read_labels(source), prompts, several=has_several_classes(metric))
    check_classes(source.name, metric, positive)


def check_classes(name: str, metric: Metric, positive: NDArray[np.bool_]) -> None:
    """Raise TrainerError if the metric is undefined for the examples' classes, (n, classes)."""
    if metric == "roc-auc" and (positive.shape[1] != 2 or not positive.any(axis=0).all()):
        raise TrainerError(
            f"evaluation set {name}: ROC AUC needs examples of two classes; {positive.any(axis=0).sum()} of "
            f"{positive.shape[1]} classes have examples: correct the labels, or the prompts in evaluate.prompts"
        )


def _table(eval_ids: list[str], scores: NDArray[np.float64], positive: NDArray[np.bool_], prompts: Prompts) -> pa.Table:
    names = np.array([names[0] for names in prompts.classes])
    labels, predictions = np.where(positive, scores, -np.inf).argmax(axis=1), scores.argmax(axis=1)
    shifted = scores - scores.max(axis=1, keepdims=True)
    probabilities = 1 / np.exp(shifted).sum(axis=1)
    columns: dict[str, Any] = {
        "eval_id": eval_ids,
        "label": names[labels],
        "prediction": names[predictions],
        "correct": positive[np.arange(len(positive)), predictions],
        "score": probabilities.astype(np.float32),
        "label_rank": label_ranks(scores, labels).astype(np.int32),
    }
    return pa.table(columns, schema=RESULTS)


def write_results(workspace: str, model: str, result: ZeroShotResult) -> str:
    """Write the per-example results of a set atomically, where the report looks for them; return the path.

    Raises:
        TrainerError: they cannot be written.
    """
    about = {"model": model, "metric": result.metric, "value": result.value, "accuracy": result.accuracy}
    table = result.table.replace_schema_metadata({"wit": json.dumps(about)})
    name = f"{results_folder(result.name)}/{model}.parquet"
    if "://" not in workspace:
        return _write_local(table, Path(workspace, name))
    filesystem, root = filesystem_of(workspace, "workspace")
    target, encoded = f"{root}/{name}", pa.BufferOutputStream()
    pq.write_table(table, encoded)
    try:
        make_folder(filesystem, target)
        filesystem.pipe_file(target, encoded.getvalue().to_pybytes())  # a store shows a whole object or none
    except Exception as error:  # each file system raises its client's errors
        raise TrainerError(f"cannot write {workspace}/{name}: {one_line(error)}") from error
    return str(filesystem.unstrip_protocol(target))


def _write_local(table: pa.Table, target: Path) -> str:
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            pq.write_table(table, file)
        os.replace(partial, target)
    except OSError as error:
        raise TrainerError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return str(target)
