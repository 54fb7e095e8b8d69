"""The subject of every image of the demo: a few coloured shapes on a patterned background.

A `Scene` describes an image in words that a caption can use and a model can learn; `pipeline.demo.drawing` draws it.
Some single-object scenes are kept for evaluation only: see `is_held_out`.
"""

import itertools
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "crescent", "ring")
PATTERNS = ("plain", "striped", "checkered", "dotted", "wavy")
RELATIONS = ("above", "below", "left", "right")
SIZES = ("small", "large")

# Pairs of colours that are hard to distinguish when one is the background of the other.
_TOO_ALIKE = frozenset({frozenset({"red", "orange"}), frozenset({"orange", "yellow"}), frozenset({"blue", "purple"})})


@dataclass(frozen=True, slots=True)
class Thing:
    """One kind of object in a scene."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Scene:
    """The contents of one image.

    `things` holds one kind of object, `count` times, or two single objects of which the first stands in `relation` to
    the second. `seed` decides everything that words do not: positions, angles, shades, texture, picture size.
    """

    things: tuple[Thing, ...]
    background: str
    pattern: str
    seed: int
    count: int = 1
    relation: str = ""
    size: str = ""


def is_held_out(thing: Thing, background: str, pattern: str) -> bool:
    """Return whether this object on this background is reserved for evaluation.

    For each object and each background colour it is exactly one of the five patterns: a Latin square.
    """
    place = COLOURS.index(thing.colour) + SHAPES.index(thing.shape) + COLOURS.index(background)
    return (place + PATTERNS.index(pattern)) % len(PATTERNS) == 0


def training_scenes(seed: int) -> Iterator[Scene]:
    """Yield scenes without end, none of which shows a held-out combination."""
    rng = random.Random(f"scenes {seed}")
    for number in itertools.count():
        yield _training_scene(rng, image_seed=seed * 1_000_003 + number)


def held_out_scenes(thing: Thing, seed: int, count: int) -> Iterator[Scene]:
    """Yield `count` evaluation scenes that show `thing` alone, on backgrounds no training scene shows it on."""
    rng = random.Random(f"held out {seed} {thing}")
    for number in range(count):
        background, pattern = _backdrop(rng, [thing], held_out=True)
        image_seed = zlib.crc32(f"{seed} {thing} {number}".encode()) + (1 << 40)
        yield Scene((thing,), background, pattern, image_seed, size=rng.choice(SIZES))


def _training_scene(rng: random.Random, image_seed: int) -> Scene:
    kind = rng.random()
    if kind < 0.7:
        thing = _thing(rng)
        background, pattern = _backdrop(rng, [thing], held_out=False)
        return Scene((thing,), background, pattern, image_seed, size=rng.choice(SIZES))
    if kind < 0.85:
        thing = _thing(rng)
        background, pattern = _backdrop(rng, [thing], held_out=False)
        return Scene((thing,), background, pattern, image_seed, count=rng.randint(2, 5))
    first = _thing(rng)
    second = _thing(rng)
    while second.shape == first.shape or second.colour == first.colour:
        second = _thing(rng)
    background, pattern = _backdrop(rng, [first, second], held_out=False)
    return Scene((first, second), background, pattern, image_seed, relation=rng.choice(RELATIONS))


def _thing(rng: random.Random) -> Thing:
    return Thing(rng.choice(COLOURS), rng.choice(SHAPES))


def _backdrop(rng: random.Random, things: list[Thing], *, held_out: bool) -> tuple[str, str]:
    """Draw a background that every thing stands out from and that is, or is not, reserved for evaluation."""
    while True:
        background, pattern = rng.choice(COLOURS), rng.choice(PATTERNS)
        if any(_blends_in(thing.colour, background) for thing in things):
            continue
        if any(is_held_out(thing, background, pattern) is not held_out for thing in things):
            continue
        return background, pattern


def _blends_in(colour: str, background: str) -> bool:
    return colour == background or frozenset({colour, background}) in _TOO_ALIKE
