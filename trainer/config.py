"""`[train]` and `[evaluate]` of wit.toml: checks every key at load, fills in the paper's values by model name.

The other tables belong to the pipeline and are ignored. Relative paths start at the config file's folder.
"""

import hashlib
import os
import re
import tomllib
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dedup.eval_sets.config import EvalSetConfig
from trainer.errors import TrainerConfigError, one_line
from trainer.loss import Objective
from trainer.model import TextTower, named_architecture, with_text_tower
from trainer.schedule import Schedule

VOCABULARY = 49_408  # of CLIP's tokenizer
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A TOML table: frozen, no unknown keys, no silent conversion ("4" is not 4), no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrainSet(Table):
    """`[[train.sets]]`: one of several sets of shards."""

    shards: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]  # globs of tars
    weight: Annotated[float, Field(gt=0)] | None = None  # only ratios count; default: the number of samples
    captions: Literal["first", "any"] | None = None  # default: as in [train]
    caption_keys: tuple[str, ...] = Field(default=(), strict=False)


class TrainConfig(Table):
    """`[train]`: one run. Keys without a default here come from presets.toml."""

    model: str = "ViT-B/32"
    text: TextTower = "transformer"
    architecture: dict[str, Any]  # open_clip's model config; default: from the preset or open_clip's list of models
    initial: str | None = None  # open_clip checkpoint to start from; positions are resized

    # input
    shards: tuple[str, ...] = Field(
        default=(), strict=False, min_length=1
    )  # globs of tars; default: `<workspace>/shards/*.tar`
    sets: tuple[TrainSet, ...] = Field(default=(), strict=False, min_length=1)  # instead of `shards`
    validation: tuple[str, ...] = Field(default=(), strict=False)  # globs of held-out tars
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the shards, drawn by seed and held out
    output: str | None = None  # a folder or URL; default: `<workspace>/train`
    cache: str | None = None  # folder of local copies of what is remote; default: `<output>/cache`
    cache_gib: Annotated[float, Field(gt=0, le=2**30)] = 64.0
    lanes: Positive = 8
    window: Positive = 65_536
    workers: Annotated[int, Field(ge=0)] | None = None  # default: this rank's CPUs less one
    prefetch: Positive = 4
    resize: Literal["auto", "device", "worker"] = "auto"  # auto: on the device if that is a GPU
    crop_scale: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 1.0)
    captions: Literal["first", "any"] = "first"
    caption_keys: tuple[str, ...] = Field(default=(), strict=False)  # "txt", keys of the json, or of annotations
    balance_cap: Positive | None = None  # MetaCLIP's online balancing: expected maximum of pairs per query and epoch
    balance_rule: Literal["metaclip", "at_most"] = "metaclip"
    max_broken_share: Fraction = 0.01

    # the objective and the recipe
    objective: Objective = "infonce"
    epochs: Annotated[float, Field(gt=0, le=1e6)]
    steps: Positive | None = None  # instead of `epochs`
    batch: Positive  # over all ranks
    micro_batch: Positive | None = None  # per rank; default: batch / ranks, that is, no accumulation
    learning_rate: Annotated[float, Field(gt=0)]
    schedule: Schedule = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)]
    cooldown_steps: Annotated[int, Field(ge=0)] = 0  # of schedule "cooldown": the last steps, in which the rate falls
    image_rate: Annotated[float, Field(ge=0)] = 1.0  # factors of the learning rate
    text_rate: Annotated[float, Field(ge=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # the rate's factor from each layer to the one below it
    lock: tuple[Literal["image", "text"], ...] = Field(default=(), strict=False)  # towers that do not learn
    unlocked_layers: Annotated[int, Field(ge=0)] = 0  # of locked towers, counted from the top
    weight_decay: Annotated[float, Field(ge=0)]
    beta1: Decay
    beta2: Decay
    eps: Annotated[float, Field(gt=0)]
    max_logit_scale: Annotated[float, Field(gt=1)]
    max_gradient_norm: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of an average of the weights, exported too

    # hardware and precision
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # auto: bf16 on a GPU, fp32 on a CPU
    device: Literal["auto", "cuda", "cpu"] = "auto"
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    gradient_compression: Literal["none", "bf16"] = "none"  # of DDP's averages
    sync_batch_norm: bool = False
    logits: Literal["auto", "fp32", "tf32"] = "auto"  # products of the loss on a GPU; auto: tf32 unless fp32 is trained
    collective_timeout_s: Positive = 600
    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    threads: Positive | None = None  # of a CPU run; default: torch's own choice

    # output
    checkpoint_steps: Positive = 1_000
    keep_checkpoints: Positive = 3
    keep_every_steps: Positive | None = None  # checkpoints at multiples of it are never deleted
    keep_epochs: bool = False  # nor those at the end of an epoch
    checkpoint_format: Literal["file", "sharded"] = "file"
    evaluate_steps: Positive | None = None
    validation_samples: Positive = 8_192  # the most held-out samples that an evaluation reads
    best: str | None = None  # the metric of an evaluation whose best checkpoint is kept
    log_steps: Positive = 10
    tensorboard: bool = True
    wandb_project: str | None = None

    @model_validator(mode="after")
    def _check_together(self) -> "TrainConfig":
        if self.best is not None and self.evaluate_steps is None:
            raise ValueError("train.best needs train.evaluate_steps")
        if self.schedule != "cooldown" and self.cooldown_steps:
            raise ValueError('train.cooldown_steps needs train.schedule = "cooldown"')
        if self.sets and self.shards:
            raise ValueError("give train.shards or [[train.sets]], not both")
        if len({one.weight is None for one in self.sets}) > 1:
            raise ValueError("give every one of [[train.sets]] a weight, or none")
        return self

    @field_validator("crop_scale")
    @classmethod
    def _check_crop_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("must be [smallest area, largest area], both above 0 and at most 1")
        return value


class EvaluateConfig(Table):
    """`[evaluate]`: how checkpoints are scored."""

    batch: Positive = 256
    workers: Annotated[int, Field(ge=0)] = 2
    device: Literal["auto", "cuda", "cpu"] = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    prompts: str | None = None  # class names and templates: a .json, .toml or .md file
    probe_train: dict[str, str] = {}  # for a linear probe: path of a set's training images, in the layout of the set


class Settings(Table):
    """The part of a wit.toml that the trainer uses, with paths resolved."""

    workspace: str
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    evals: tuple[EvalSetConfig, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _check_together(self) -> "Settings":
        names = [source.name for source in self.evals]
        for name in names:
            if names.count(name) > 1:  # the results of one would replace the other's
                raise ValueError(f"two [[evals]] have the name {name!r}: rename one")
        if self.train.evaluate_steps and not (self.train.validation or self.train.validation_share or names):
            raise ValueError("train.evaluate_steps has nothing to score: set train.validation_share, or add [[evals]]")
        return self

    @property
    def shard_globs(self) -> tuple[str, ...]:
        """The globs that match the shards."""
        return self.train.shards or (f"{self.workspace}/shards/*.tar",)

    @property
    def output_url(self) -> str | None:
        """Where the output is kept, if that is a store."""
        return self._output.rstrip("/") if "://" in self._output else None

    @property
    def _output(self) -> str:
        return self.train.output or f"{self.workspace}/train"

    @property
    def output(self) -> Path:
        """The folder of checkpoints and logs, on this machine; of an output on a store a copy, in the cache."""
        if self.output_url is None:
            return Path(self._output)
        return self.cache / f"output-{hashlib.sha256(self.output_url.encode()).hexdigest()[:16]}"

    @property
    def cache(self) -> Path:
        """The folder of local copies of remote shards and of an output on a store."""
        if self.train.cache:
            return Path(self.train.cache)
        if self.output_url is None:
            return self.output / "cache"
        if "://" in self.workspace:
            raise TrainerConfigError(
                f"train.output = {self._output!r} is on a store: set train.cache to a folder of this machine, for "
                "its copy"
            )
        return Path(self.workspace) / "train" / "cache"


@cache
def _presets() -> dict[str, Any]:
    return tomllib.loads(resources.files("trainer").joinpath("presets.toml").read_text())


def preset_names() -> tuple[str, ...]:
    """Return the model names that have a preset."""
    return tuple(_presets()["models"])


def preset(model: str) -> dict[str, Any]:
    """Return the hyper-parameters of a model name: the common ones, overridden by its family's, then the model's.

    Any other name must be an open_clip architecture; it gets a ViT's or ResNet's values and the learning rate of ViT-B.
    """
    models = _presets()["models"]
    values = dict(models.get(model) or {"open_clip": model, "learning_rate": models["ViT-B/32"]["learning_rate"]})
    architecture = values.pop("architecture", None) or named_architecture(values["open_clip"])
    is_resnet = isinstance(architecture["vision_cfg"].get("layers"), list)
    family = values.pop("family", "resnet" if is_resnet else "vit")
    values.pop("open_clip", None)
    return {**_presets()["common"], **_presets()["families"][family], "architecture": architecture, **values}


def load_settings(path: str | Path) -> Settings:
    """Read `[train]`, `[evaluate]`, `[[evals]]`, `workspace` and `seed` of a TOML file.

    Raises:
        TrainerConfigError: the file cannot be read, or a key or value is not allowed.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise TrainerConfigError(f"cannot read {path}: tables or lists are nested too deeply") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, not TOML, or a number of thousands of digits
        raise TrainerConfigError(f"cannot read {path}: {one_line(error)}") from error
    known: dict[str, Any] = {
        key: document[key] for key in ("workspace", "seed", "train", "evaluate", "evals") if key in document
    }
    return settings_from(known, path.parent)


def settings_from(document: dict[str, Any], folder: Path) -> Settings:
    """Check the tables of `document`, fill in the preset and resolve paths relative to `folder`."""
    given = document.get("train", {})
    if not isinstance(given, dict):
        raise TrainerConfigError(f"train = {given!r}: must be one table, [train]")
    train = dict(given)
    model = train.get("model", TrainConfig.model_fields["model"].default)
    if not isinstance(model, str):
        raise TrainerConfigError(f"train.model = {model!r}: must be a name in quotes, such as {preset_names()[5]!r}")
    train = {**preset(model), **train}
    _check_architecture(train["architecture"])
    try:
        train["architecture"] = with_text_tower(train["architecture"], train.get("text", "transformer"))
        settings = Settings.model_validate({**document, "train": train})
    except ValidationError as error:
        raise TrainerConfigError(_one_line(error)) from error
    return _resolve_paths(settings, folder)


def _check_architecture(architecture: Any) -> None:
    """Raise unless the table has the keys that data loading needs; open_clip checks the rest."""
    try:
        numbers = [
            architecture["embed_dim"],
            architecture["vision_cfg"]["image_size"],
            architecture["text_cfg"]["context_length"],
            architecture["text_cfg"]["width"],
            architecture["text_cfg"]["vocab_size"] - VOCABULARY + 1,
        ]
        is_usable = all(isinstance(number, int) and number > 0 for number in numbers)
    except (TypeError, KeyError):
        is_usable = False
    if not is_usable:
        raise TrainerConfigError(
            f"train.architecture = {architecture!r}: must be an open_clip model config, with embed_dim, "
            f"vision_cfg.image_size, text_cfg.context_length, .width and .vocab_size (at least {VOCABULARY})"
        )


def _one_line(error: ValidationError) -> str:
    """Name the first wrong key, its value and what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["loc"] in ((), ("train",)) and first["type"] == "value_error":
        return f"{'[train]: ' if key else ''}{first['msg'].removeprefix('Value error, ')}"
    if first["type"] == "extra_forbidden":
        tables: dict[str, type[Table]] = {"train": TrainConfig, "evaluate": EvaluateConfig}
        table = TrainSet if first["loc"][:2] == ("train", "sets") else tables.get(str(first["loc"][0]))
        return f"unknown key {key}; allowed: {', '.join(table.model_fields)}" if table else f"unknown key {key}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] == "tuple_type":
        return f"{key} = {first['input']!r}: must be a list in brackets"
    if first["type"] == "too_short":
        return f"{key} = {first['input']!r}: must not be empty"
    return f"{key} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _initial(value: str, absolute: Callable[[str], str]) -> str:
    """Return a path in full; a word without slash or dot that names no file is a tag of open_clip."""
    path = absolute(value)
    return value if re.fullmatch(r"\w+", value) and not os.path.exists(path) else path


def open_clip_name(model: str) -> str:
    """Return open_clip's name of an architecture."""
    return str(_presets()["models"].get(model, {}).get("open_clip", model))


def _resolve_paths(settings: Settings, folder: Path) -> Settings:
    def absolute(path: str) -> str:
        return path if "://" in path else str((folder / os.path.expanduser(path)).absolute())

    train = settings.train
    resolved = train.model_copy(
        update={
            "shards": tuple(absolute(path) for path in train.shards),
            "validation": tuple(absolute(path) for path in train.validation),
            "sets": tuple(
                one.model_copy(update={"shards": tuple(absolute(path) for path in one.shards)}) for one in train.sets
            ),
            **{key: absolute(value) for key in ("output", "cache") if (value := getattr(train, key))},
            "initial": train.initial and _initial(train.initial, absolute),
        }
    )
    evaluate = settings.evaluate.model_copy(
        update={
            "prompts": settings.evaluate.prompts and absolute(settings.evaluate.prompts),
            "probe_train": {name: absolute(path) for name, path in settings.evaluate.probe_train.items()},
        }
    )
    evals = tuple(e.model_copy(update={"path": absolute(e.path)}) for e in settings.evals)
    return settings.model_copy(
        update={"workspace": absolute(settings.workspace), "train": resolved, "evaluate": evaluate, "evals": evals}
    )
