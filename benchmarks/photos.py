"""Shards of made-up photographs for the benchmarks: file sizes and decoding times as of real ones."""

import json
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from pipeline.shards.tar import TarWriter


def make_shards(folder: Path, shards: int = 8, samples: int = 500) -> str:
    """Write shards of blurred noise with photo-like file sizes, shorter side 256 pixels; return their glob."""
    folder.mkdir(exist_ok=True)
    with get_context("fork").Pool() as pool:
        names = pool.starmap(_write_shard, [(folder, number, samples) for number in range(shards)])
    (folder / "sizes.json").write_text(json.dumps(dict.fromkeys(names, samples)))
    return f"{folder}/*.tar"


def _write_shard(folder: Path, shard: int, samples: int) -> str:
    random, name = np.random.default_rng(shard), f"{shard:05d}.tar"
    with (folder / name).open("wb") as stream, TarWriter(stream) as tar:
        for number in range(samples):
            key = f"{shard:04d}{number:028d}"
            tar.add(f"{key}.jpg", photo(random))
            words = random.choice(["a", "photo", "of", "dog", "red", "house", "near", "the", "sea", "in"], 12)
            tar.add(f"{key}.txt", " ".join(words).encode())
            tar.add(f"{key}.json", b"{}")
    return name


def photo(random: np.random.Generator) -> bytes:
    """Return a JPEG of blurred noise with some grain, shorter side 256 pixels."""
    width, height = (
        (256, int(random.integers(256, 400))) if random.random() < 0.5 else (int(random.integers(256, 400)), 256)
    )
    noise = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    grain = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).filter(ImageFilter.BoxBlur(1))
    stream = BytesIO()
    Image.blend(image, grain, 0.15).save(stream, "JPEG", quality=90)
    return stream.getvalue()
