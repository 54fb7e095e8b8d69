"""The shards of a run: counted once, divided into those to train on and those held out, in one order."""

import os
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from trainer.annotations import annotations_fingerprint, parse_key
from trainer.capped_draw import CappedDraw
from trainer.captions import CaptionRule
from trainer.config import Settings, TrainConfig, TrainSet
from trainer.counting import CountedShard, count_shards
from trainer.data import Order, Preprocessing
from trainer.distributed import World
from trainer.errors import TrainerConfigError
from trainer.mixture import BLOCK, MixedOrder
from trainer.online_balance import BalancedOrder, keep_probabilities, query_lists
from trainer.order import SampleOrder, hash64
from trainer.remote_shards import filesystem_of
from trainer.shard_cache import ShardCache, digest
from trainer.shards import ShardSet

_SET_STREAM, _HELD_OUT_STREAM = 7, 8  # the other modules use 0 to 6


@dataclass(frozen=True)
class Inputs:
    """What a run reads."""

    shards: ShardSet  # of all sets, one after the other
    order: Order
    preprocessing: Preprocessing
    held_out: ShardSet
    held_out_view: Preprocessing
    annotations: list[str | None]  # of each set, a fingerprint of those that are its captions

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which sample comes when, with which caption."""
        shares = self.order.shares if isinstance(self.order, MixedOrder) else None
        return {
            "shards": self.shards.fingerprint,
            "train.sets": None if shares is None else list(shares),
            "train.captions": [[rule.choice, *rule.keys] for rule in self.preprocessing.captions],
            "annotations": self.annotations,
        }


def open_inputs(settings: Settings, world: World, *, resizes_on_device: bool) -> Inputs:
    """List and count the shards in the first process, and return what every process reads.

    Raises:
        TrainerError: no shards, or some cannot be counted; a share of a set is too large or too small.
    """
    config = settings.train
    cache = ShardCache(settings.cache, int(config.cache_gib * 2**30))
    sets = config.sets or (TrainSet(shards=settings.shard_globs),)

    def count() -> tuple[list[tuple[CountedShard, ...]], tuple[CountedShard, ...]]:
        keys = [f"train.sets[{number}].shards" if config.sets else "train.shards" for number in range(len(sets))]
        counted = [count_shards(one.shards, cache, key) for one, key in zip(sets, keys, strict=True)]
        return counted, count_shards(config.validation, cache, "train.validation") if config.validation else ()

    trained, held_out = world.from_first(lambda: _divided(settings, *count()))
    shard_sets = [ShardSet(shards, cache) for shards in trained]
    first = tuple(sum(len(other.shards) for other in shard_sets[:number]) for number in range(len(sets)))
    view = Preprocessing(
        config.architecture["vision_cfg"]["image_size"],
        config.architecture["text_cfg"]["context_length"],
        settings.seed,
        config.crop_scale,
        tuple(_rule(config, one) for one in sets),
        first,
        resizes_on_device,
    )
    held_out_view = Preprocessing(
        view.image_size, view.context_length, settings.seed, (1.0, 1.0),
        tuple(_first_of(rule) for rule in view.captions),
        tuple(sum(map(len, held_out[:number])) for number in range(len(held_out))),
        resizes_on_device, is_centred=True,
    )  # fmt: skip
    return Inputs(
        ShardSet(tuple(shard for one in trained for shard in one), cache),
        _order(settings, world, sets, shard_sets, first),
        view,
        ShardSet(tuple(shard for one in held_out for shard in one), cache),
        held_out_view,
        world.from_first(lambda: list(map(_annotations, view.captions, trained))),
    )


def _annotations(rule: CaptionRule, shards: tuple[CountedShard, ...]) -> str | None:
    paths = [shard.path for shard in shards if shard.samples]
    return annotations_fingerprint(paths, rule.annotations) if rule.annotations else None


def _rule(config: TrainConfig, one: TrainSet) -> CaptionRule:
    rule = CaptionRule(one.captions or config.captions, one.caption_keys or config.caption_keys)
    for key in rule.annotations:
        parse_key(key)
    return rule


def _first_of(rule: CaptionRule) -> CaptionRule:
    """Return the rule for evaluation: of the same keys, the first caption."""
    return CaptionRule("first", rule.keys or (("captions", "txt") if rule.choice == "any" else ()))


def _divided(
    settings: Settings, counted: list[tuple[CountedShard, ...]], validation: tuple[CountedShard, ...]
) -> tuple[list[tuple[CountedShard, ...]], list[tuple[CountedShard, ...]]]:
    """Return each set's shards to train on, and its held-out ones; those of `train.validation` come with the first.

    What one set holds out, no set trains on, and it is held out once.
    """
    share = settings.train.validation_share
    if not share and not validation:
        return counted, [() for _ in counted]
    held_out: list[tuple[CountedShard, ...]] = [validation, *(() for _ in counted[1:])]
    files = {shard.path: _file_of(shard.path) for shards in (validation, *counted) for shard in shards}
    apart = {files[shard.path] for shard in validation}
    rests = [[shard for shard in shards if files[shard.path] not in apart] for shards in counted]
    for number, rest in enumerate(rests):
        count = min(len(rest) - 1, max(1, round(share * len(rest)))) if share and rest else 0
        chosen = set(sorted(rest, key=lambda shard: _draw(settings.seed, shard))[:count])
        new = tuple(shard for shard in rest if shard in chosen and files[shard.path] not in apart)
        held_out[number] += new
        apart |= {files[shard.path] for shard in new}
    trained = [tuple(shard for shard in rest if files[shard.path] not in apart) for rest in rests]
    for number, shards in enumerate(trained):
        if not sum(shard.samples for shard in shards):
            name = f"train.sets[{number}]" if settings.train.sets else "train"
            raise TrainerConfigError(f"{name}: all shards with samples are held out: leave some to train on")
    if share and not any(held_out):
        raise TrainerConfigError(
            f"train.validation_share = {share} needs two shards or more: there is one, which is needed for training"
        )
    return trained, held_out


def _file_of(path: str) -> tuple[type, str]:
    """Return what is equal for all spellings of a path: with `..`, `file://` or a link."""
    filesystem, own = filesystem_of(path)
    return type(filesystem), os.path.realpath(own) if isinstance(filesystem, LocalFileSystem) else own


def _draw(seed: int, shard: CountedShard) -> int:
    """Return a number that depends on the shard's name only, so that adding shards does not move others."""
    name = int(digest(shard.path.rpartition("/")[2])[:16], 16)
    return int(hash64(seed, _HELD_OUT_STREAM, name)[0])


def _order(
    settings: Settings, world: World, sets: tuple[TrainSet, ...], shard_sets: list[ShardSet], first: tuple[int, ...]
) -> Order:
    config = settings.train
    seeds = [settings.seed, *(int(hash64(settings.seed, _SET_STREAM, n)[0]) for n in range(1, len(sets)))]
    orders = tuple(_own_order(config, world, shards, seed) for shards, seed in zip(shard_sets, seeds, strict=True))
    if len(orders) == 1:
        return orders[0]
    weights = tuple(one.weight or order.samples for one, order in zip(sets, orders, strict=True))
    mixed = MixedOrder(orders, weights, first, seed=settings.seed, lanes=config.lanes)
    for number, (share, order) in enumerate(zip(mixed.shares, orders, strict=True)):
        if share * BLOCK < 2:
            raise TrainerConfigError(f"train.sets[{number}].weight is {share:.2g} of all: at least {2 / BLOCK:.2g}")
        if share * config.batch > order.samples:
            raise TrainerConfigError(
                f"train.sets[{number}]: its part of a batch, {share * config.batch:,.0f}, is more than its "
                f"{order.samples:,} samples, so a batch would contain pairs twice: lower its weight or train.batch"
            )
    return mixed


def _own_order(config: TrainConfig, world: World, shards: ShardSet, seed: int) -> SampleOrder | BalancedOrder:
    shape = {"seed": seed, "lanes": config.lanes, "window": config.window}
    if config.balance_cap is None:
        return SampleOrder(shards.counts, **shape)
    cap = config.balance_cap
    if config.balance_rule == "at_most":
        return BalancedOrder(shards.counts, CappedDraw(query_lists(shards), cap, seed), **shape)
    return BalancedOrder(shards.counts, world.from_first(lambda: keep_probabilities(shards, cap)), **shape)
