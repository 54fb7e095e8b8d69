"""Small shards of generated scenes, written as the pipeline writes its own."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.shards.manifest import FORMAT
from pipeline.shards.tar import TarWriter

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 70, 220), "yellow": (235, 220, 50)}
SHAPES = ("circle", "square", "triangle")


def draw_scene(colour: str, shape: str, seed: int, size: int = 72) -> bytes:
    """Return a JPEG of one coloured shape on a grey ground, at a random place."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (size + int(random.integers(0, 30)), size), tuple([int(random.integers(90, 170))] * 3))
    side = int(random.integers(size // 3, size // 2))
    left, top = (int(random.integers(4, length - side - 4)) for length in image.size)
    box = (left, top, left + side, top + side)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    else:
        draw.polygon([(left, box[3]), (box[2], box[3]), ((left + box[2]) // 2, top)], fill=COLOURS[colour])
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def scene_of(number: int) -> tuple[str, str]:
    """Return the colour and shape of sample `number`."""
    return tuple(COLOURS)[number % 4], SHAPES[number // 4 % 3]


def scene_key(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def write_scene_shards(
    folder: Path,
    counts: tuple[int, ...],
    replace: dict[str, dict[int, bytes]] | None = None,
    scene: Callable[[int], tuple[str, str]] = scene_of,
) -> Path:
    """Write tars of `counts` samples and their manifest; `replace[suffix][number]` stands in for a member."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    shards = []
    for shard, count in enumerate(counts):
        name = f"{shard:05d}.tar"
        with (folder / name).open("wb") as stream, TarWriter(stream) as tar:
            for number in range(first, first + count):
                colour, shape = scene(number)
                caption = f"a {colour} {shape}"
                metadata = {"uid": scene_key(number), "captions": [caption, f"one {shape}, {colour}", "scene"]}
                members = {
                    "jpg": draw_scene(colour, shape, number),
                    "txt": caption.encode(),
                    "json": json.dumps(metadata).encode(),
                }
                for suffix, content in members.items():
                    content = (replace or {}).get(suffix, {}).get(number, content)
                    if content != b"absent":
                        tar.add(f"{scene_key(number)}.{suffix}", content)
        first += count
        shards.append({"tar": name, "samples": count})
    (folder / "sizes.json").write_text(json.dumps({shard["tar"]: shard["samples"] for shard in shards}))
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "samples": sum(counts), "shards": shards}))
    return folder
