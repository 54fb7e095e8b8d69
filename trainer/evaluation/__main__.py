"""`python -m trainer.evaluation -c wit.toml --checkpoint PATH`: score a checkpoint on the config's evaluation sets."""

import argparse
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from dedup.eval_sets.config import EvalSetConfig
from trainer.config import Settings, load_settings
from trainer.errors import TrainerConfigError, TrainerError
from trainer.evaluation.examples import EncodedSet, encode_set, number_labels
from trainer.evaluation.linear_probe import linear_probe
from trainer.evaluation.metrics import evaluate, has_several_classes, registered_metric
from trainer.evaluation.models import Encoder, open_encoder, without_projection
from trainer.evaluation.prompts import Prompts, find_prompts, read_prompts
from trainer.evaluation.retrieval import DEPTHS, PREFIX, retrieve
from trainer.evaluation.zero_shot import ZeroShotResult, check_classes, write_results, zero_shot
from trainer.shard_cache import ShardCache
from trainer.shards import find_shards


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        _run(options)
    except TrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except _Stopped:
        print("stopped; the results of finished sets are written", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


class _Stopped(BaseException):
    """SIGTERM arrived."""


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _run(options: argparse.Namespace) -> None:
    settings = load_settings(options.config)
    _check_names(settings)
    sets = _chosen(settings, options.sets)
    if not sets and options.retrieval is None:
        raise TrainerConfigError(f"{options.config} has no [[evals]]: add a set, or use --retrieval SHARDS")
    _check_file_name("--name", options.name)
    for source in sets:
        _check_file_name("evals.name", source.name)
    encoder = open_encoder(options.checkpoint, options.model, options.name, settings.evaluate)
    if sets:
        _classify(settings, encoder, sets)
    if options.retrieval is not None:
        _retrieve(settings, encoder, options.retrieval)


def _check_names(settings: Settings) -> None:
    names = [source.name for source in settings.evals]
    for name in settings.evaluate.probe_train:
        if name not in names:
            raise TrainerConfigError(
                f"evaluate.probe_train.{name}: no such set in [[evals]], which has {', '.join(names) or 'none'}"
            )


def _check_file_name(key: str, name: str | None) -> None:
    """Raise if the name cannot be a file name, so that results stay in their folder."""
    if name is not None and not re.fullmatch(r"[^./\0][^/\0]*", name):
        raise TrainerConfigError(f"{key} {name!r} is not a file name: it must not be empty, begin with . or contain /")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wit evaluate",
        description="Score a checkpoint zero-shot on the evaluation sets of a config, and write per-example results "
        "that the overlap report splits into All, Clean and Overlap.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="the TOML file with [[evals]]")
    parser.add_argument(
        "--checkpoint", required=True, help="a step-*.pt file, the folder of an exported model, or a file of weights"
    )
    parser.add_argument(
        "--model", help="open_clip architecture name; required if --checkpoint is a file of weights or a pretrained tag"
    )
    parser.add_argument("--name", help="name of the results (default: from the checkpoint)")
    parser.add_argument("--sets", nargs="+", help="evaluate only these sets of [[evals]]")
    parser.add_argument(
        "--retrieval", metavar="SHARDS", help="a glob of shards: also score image-text retrieval on them"
    )
    return parser


def _chosen(settings: Settings, names: list[str] | None) -> tuple[EvalSetConfig, ...]:
    if names is None:
        return settings.evals
    known = {source.name: source for source in settings.evals}
    for name in names:
        if name not in known:
            raise TrainerConfigError(f"--sets {name}: no such set in [[evals]], which has {', '.join(known) or 'none'}")
    return tuple(known[name] for name in names)


def _classify(settings: Settings, encoder: Encoder, sets: tuple[EvalSetConfig, ...]) -> None:
    published = read_prompts(Path(settings.evaluate.prompts)) if settings.evaluate.prompts else {}
    table = Table("set", "metric", "zero-shot", "chance", "linear probe", "examples", "prompts", title=encoder.name)
    written = []
    try:
        for source in sets:
            prompts = find_prompts(source.name, published)
            unprojected, examples = _encode(settings, encoder, source)
            result = zero_shot(encoder, source, prompts, examples)
            written.append(write_results(settings.workspace, encoder.name, result))
            probe = None
            try:
                probe = _probe(settings, encoder, source, prompts, unprojected)
            finally:
                table.add_row(
                    result.name, result.metric, _percent(result.value), _percent(result.chance), _percent(probe),
                    _count(result), result.prompts,
                )  # fmt: skip
    finally:  # an error in the last set must not lose the results of the others
        if written:
            Console().print(table)
            print(*written, sep="\n")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.1%}"


def _count(result: ZeroShotResult) -> str:
    return f"{result.examples:,}" + (f" ({result.left_out:,} unreadable left out)" if result.left_out else "")


def _encode(settings: Settings, encoder: Encoder, source: EvalSetConfig) -> tuple[EncodedSet, EncodedSet]:
    """Encode a set once; return its features before (for the probe) and after the projection (for zero-shot)."""
    projection = getattr(encoder.model.visual, "proj", None)
    if projection is None or source.name not in settings.evaluate.probe_train:
        examples = encode_set(encoder, source)
        return examples, examples
    with without_projection(encoder.model):
        examples = encode_set(encoder, source)
    return examples, replace(examples, features=examples.features @ projection.detach().float().cpu())


def _probe(
    settings: Settings, encoder: Encoder, source: EvalSetConfig, prompts: Prompts | None, test: EncodedSet
) -> float | None:
    """Fit on the set's training images, if the config has their path, and score on the evaluation images `test`."""
    path = settings.evaluate.probe_train.get(source.name)
    if path is None:
        return None
    with without_projection(encoder.model):
        train = encode_set(encoder, source.model_copy(update={"path": path}))
    if len(train.labels) < 2:
        raise TrainerError(f"evaluate.probe_train.{source.name}: a probe needs two or more examples; {path} has one")
    metric = registered_metric(source.name)
    several = has_several_classes(metric)
    _, positive = number_labels(source.name, train.labels + test.labels, prompts, several=several)
    train_positive, test_positive = positive[: len(train.labels)], positive[len(train.labels) :]
    check_classes(source.name, metric, test_positive)
    probe = linear_probe(train.features.numpy(), train_positive, several=several, device=encoder.device)
    return evaluate(metric, probe.scores(test.features.numpy()), test_positive)


def _retrieve(settings: Settings, encoder: Encoder, glob: str) -> None:
    shards = find_shards((glob,), ShardCache(settings.cache, int(settings.train.cache_gib * 2**30)), "--retrieval")
    result = retrieve(encoder, shards, PREFIX)
    table = Table(
        "retrieval", *(f"R@{k}" for k in DEPTHS), title=f"{result.images:,} images, {result.captions:,} captions"
    )
    for direction, recall in (("image to text", result.text_recall), ("text to image", result.image_recall)):
        table.add_row(direction, *(f"{recall[k]:.1%}" for k in DEPTHS))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
