"""Open any open_clip checkpoint, of this trainer or another, and encode images and texts into features."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor
from torch.distributed.tensor import DTensor

from dedup.decode import ImageDecodeError, decode_rgb
from trainer import checkpoint
from trainer.config import EvaluateConfig
from trainer.distributed import pick_device
from trainer.errors import TrainerError
from trainer.export import PREPROCESSING
from trainer.model import build_model
from trainer.precision import autocast, pick_precision
from trainer.sharded import read_checkpoint
from trainer.store import local_copy
from trainer.tokenizer import tokenize

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Encoder:
    """A model with its preprocessing and tokenizer, on its device."""

    name: str
    model: Any
    preprocess: Callable[[Image.Image], Tensor]
    tokenize: Callable[[list[str]], Tensor]
    device: torch.device
    precision: torch.dtype
    batch: int
    workers: int

    @property
    def scale(self) -> float:
        """exp(t), by which similarities are multiplied."""
        scale = self.model.logit_scale.detach()
        return float((scale.full_tensor() if isinstance(scale, DTensor) else scale).exp())

    def amp(self) -> Any:
        """Return the context in which the model runs."""
        return autocast(self.device, self.precision)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return L2-normalised features, (n, D) float32, on the CPU."""
        parts = []
        for start in range(0, len(texts), self.batch):
            tokens = self.tokenize(texts[start : start + self.batch]).to(self.device)
            with autocast(self.device, self.precision):
                parts.append(self.model.encode_text(tokens))
        return F.normalize(self._finite(torch.cat(parts).float().cpu()), dim=-1)

    @torch.inference_mode()
    def encode_images(self, images: Iterable[bytes]) -> Iterator[tuple[Tensor, list[bool]]]:
        """Yield batches: features of the readable images, (n, D) float32 not normalised, and which are readable."""
        waiting = iter(images)
        with ThreadPoolExecutor(max(1, self.workers)) as threads:
            while block := list(islice(waiting, self.batch)):
                pixels = list(threads.map(self._pixels, block))
                readable = [image for image in pixels if image is not None]
                features = torch.empty(0, 0)
                if readable:
                    with autocast(self.device, self.precision):
                        features = self.model.encode_image(torch.stack(readable).to(self.device)).float().cpu()
                yield self._finite(features), [image is not None for image in pixels]

    def _finite(self, features: Tensor) -> Tensor:
        if not features.isfinite().all():
            raise TrainerError(
                f"the features of {self.name} are not finite numbers: "
                'evaluate an earlier checkpoint, or set evaluate.precision = "fp32"'
            )
        return features

    def _pixels(self, encoded: bytes) -> Tensor | None:
        try:
            image = Image.fromarray(decode_rgb(encoded))
        except ImageDecodeError:
            return None
        return self.preprocess(image)


def open_encoder(
    path: str | Path, architecture: str | None = None, name: str | None = None, config: EvaluateConfig | None = None
) -> Encoder:
    """Open a checkpoint for evaluation.

    `path`: a checkpoint of this trainer; the folder of an exported model; or, with `architecture` (an open_clip name),
    a file of weights or one of open_clip's pretrained tags. Files and folders may be on a store.

    Raises:
        TrainerError: it cannot be opened, or the weights are of another architecture.
    """
    path, config = str(path), config or EvaluateConfig()
    device = pick_device(config.device, key="evaluate.device")
    logging.getLogger().setLevel(logging.WARNING)  # open_clip logs every step of building a model
    with local_copy(path) as local:
        model, preprocess, context_length = _open(local, architecture)
    _check_weights(model, path)
    tokenizer = (
        partial(tokenize, context_length=context_length)
        if architecture is None
        else open_clip.get_tokenizer(architecture, context_length=context_length)
    )
    return Encoder(
        name or _default_name(path, architecture), model.to(device).eval(), preprocess, tokenizer, device,
        pick_precision(config.precision, device), config.batch, config.workers,
    )  # fmt: skip


def _open(path: str, architecture: str | None) -> tuple[Any, Callable[[Image.Image], Tensor], int]:
    if architecture is None and (path.endswith(".pt") or checkpoint.is_checkpoint_name(Path(path))):
        return _open_training_checkpoint(Path(path))
    if architecture is None and not Path(path, "open_clip_config.json").exists():
        raise TrainerError(
            f"{path} is neither a checkpoint of this trainer nor an exported model: {_what_instead(Path(path))}"
        )
    source = (f"local-dir:{path}", None) if architecture is None else (architecture, path)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what open_clip logs before it raises lists all tags
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(*source)
    except Exception as error:  # open_clip and torch raise any error of their readers
        reason = checkpoint.why_not_loaded(error)
        raise TrainerError(f"cannot open {path} as {architecture or 'an exported model'}: {reason}") from error
    finally:
        logging.disable(before)
    return model, preprocess, model.context_length


def _what_instead(path: Path) -> str:
    """Return what to give where a folder or file cannot be opened."""
    if not path.exists():
        return "it does not exist; for a tag of open_clip add its architecture, such as --model ViT-B-32"
    if (path / "model" / "open_clip_config.json").exists():
        return f"give {path}/model"
    saved = [*checkpoint.list_checkpoints(path), *checkpoint.list_checkpoints(path / "checkpoints")]
    return f"give {saved[-1]}" if saved else "add its architecture, such as --model ViT-B-32"


def _open_training_checkpoint(path: Path) -> tuple[Any, Callable[[Image.Image], Tensor], int]:
    if not path.exists():
        raise TrainerError(f"checkpoint {path} does not exist")
    content = read_checkpoint(path)
    try:
        identity = content["identity"]
        model = build_model(identity["train.architecture"], objective=identity["train.objective"])
        model.load_state_dict(content["model"])
    except Exception as error:  # missing or mismatched entries fail wherever they are used
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise TrainerError(f"{path} is an incomplete checkpoint ({reason}): evaluate another one") from error
    return model, evaluation_transform(model.visual.image_size), model.context_length


def evaluation_transform(size: Any) -> Callable[[Image.Image], Tensor]:
    """Return open_clip's preprocessing of images that a model of this trainer is evaluated on."""
    transform: Callable[[Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(size=size, **PREPROCESSING), is_train=False
    )
    return transform


def _check_weights(model: Any, path: str) -> None:
    for name, weights in model.named_parameters():
        if not weights.isfinite().all():
            raise TrainerError(f"{path}: the weights {name} are not finite numbers: evaluate an earlier checkpoint")


def _default_name(path: str, architecture: str | None) -> str:
    """Name a model after its architecture and file, or after its run's folder."""
    stem = Path(path).stem
    if architecture is not None:
        return f"{architecture}-{stem}".replace("/", "-")
    folder = Path(path).absolute().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    return f"{run.name}-{stem}"


@contextmanager
def without_projection(model: Any) -> Iterator[None]:
    """Let a ViT's `encode_image` return its projection's input (CLIP section 3.2: the features of the probe).

    A ResNet's attention pool and other towers have no separate projection; their `encode_image` does not change.
    """
    projection = getattr(model.visual, "proj", None)
    if projection is None:
        yield
        return
    model.visual.proj = None
    try:
        yield
    finally:
        model.visual.proj = projection
