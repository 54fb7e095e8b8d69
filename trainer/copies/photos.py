"""The photos to train on: decoded once from tars of images into one file that every process maps into memory."""

import hashlib
import json
import os
import random
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from trainer.errors import TrainerError

SHORT_SIDE = 128
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_MIN_SIDE = 32
_MIN_CONTRAST = 6.0  # standard deviation of the bytes: plain images look alike


@dataclass(frozen=True)
class Photos:
    """RGB photos of up to `SHORT_SIDE` pixels on the shorter side, in named sets."""

    pixels: np.memmap
    starts: np.ndarray  # (n,) int64, into `pixels`
    shapes: np.ndarray  # (n, 2) int32: height, width
    sets: dict[str, np.ndarray]  # name: row numbers
    sha256: str  # over all names and files, in the order read

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> np.ndarray:
        height, width = (int(side) for side in self.shapes[row])
        start = int(self.starts[row])
        return np.asarray(self.pixels[start : start + height * width * 3]).reshape(height, width, 3)


HOLD_OUT_ONE_IN = 20
"""Where no set is held out, every 20th photo is."""


def read_photos(shards: list[Path], folder: Path, held_out: tuple[str, ...] = ()) -> Photos:
    """Decode the tars into `folder` once, or open what an earlier run decoded; held-out photos are left out.

    A set is a top-level folder of a tar, or the whole tar where its images have none.

    Raises:
        TrainerError: a tar cannot be read, or fewer than 64 images are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = {"shards": [[str(path), path.stat().st_size] for path in shards], "held_out": sorted(held_out)}
    index = folder / "photos.json"
    if not index.exists() or json.loads(index.read_text())["request"] != request:
        _decode(shards, held_out, folder, request)
    content = json.loads(index.read_text())
    sets = np.array(content["sets"])
    if len(sets) < 64:
        raise TrainerError(f"the shards hold {len(sets)} usable images to train on; at least 64 are needed")
    return Photos(
        np.memmap(folder / "photos.bin", np.uint8, "r"),
        np.array(content["starts"], np.int64),
        np.array(content["shapes"], np.int32),
        {str(name): np.flatnonzero(sets == name) for name in np.unique(sets)},
        content["sha256"],
    )


def read_held_out(shards: list[Path], held_out: tuple[str, ...], most: int = 2_000) -> list[np.ndarray]:
    """Return the photos, at most `most` of them, that `read_photos` leaves out.

    Raises:
        TrainerError: fewer than 20 are usable.
    """
    files = (file for place, name, _, file in images_in(shards) if is_held_out(place, name, held_out))
    photos = list(islice((photo for photo in map(decode, files) if photo is not None), most))
    if len(photos) < 20:
        raise TrainerError(f"{len(photos)} usable photos are held out to calibrate on; at least 20 are needed")
    return photos


def is_held_out(place: int, name: str, held_out: tuple[str, ...]) -> bool:
    """Return whether the image at this position of the tars, of the set `name`, is held out from training."""
    return name in held_out if held_out else place % HOLD_OUT_ONE_IN == 0


def images_in(shards: list[Path]) -> Iterator[tuple[int, str, str, bytes]]:
    """Yield (position, set, name, file) of each image in the tars, in their order."""
    place = 0
    for path in shards:
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and member.name.lower().endswith(_SUFFIXES):
                        top, _, rest = member.name.partition("/")
                        file = tar.extractfile(member)
                        assert file is not None
                        yield place, (top if rest else path.stem), member.name, file.read()
                        place += 1
        except (OSError, tarfile.TarError) as error:
            raise TrainerError(f"cannot read the shard {path}: {error}") from error


def decode(file: bytes) -> np.ndarray | None:
    """Return an image file as RGB with a shorter side of at most `SHORT_SIDE`; None if it is broken, tiny or plain."""
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None or min(pixels.shape[:2]) < _MIN_SIDE or max(pixels.shape[:2]) > 6 * min(pixels.shape[:2]):
        return None
    if pixels.std() < _MIN_CONTRAST:
        return None
    scale = SHORT_SIDE / min(pixels.shape[:2])
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(pixels[:, :, ::-1])


def _decode(shards: list[Path], held_out: tuple[str, ...], folder: Path, request: dict[str, object]) -> None:
    hashed = hashlib.sha256()
    starts, shapes, sets, end = [], [], [], 0
    partial = folder / "photos.bin.partial"
    with partial.open("wb") as output:
        for place, name, member, file in images_in(shards):
            pixels = None if is_held_out(place, name, held_out) else decode(file)
            if pixels is None:
                continue
            hashed.update(member.encode() + b"\0" + file)
            starts.append(end)
            shapes.append(pixels.shape[:2])
            sets.append(name)
            end += output.write(pixels.tobytes())
    os.replace(partial, folder / "photos.bin")
    content = {"request": request, "starts": starts, "shapes": shapes, "sets": sets, "sha256": hashed.hexdigest()}
    index = folder / "photos.json.partial"
    index.write_text(json.dumps(content))
    os.replace(index, folder / "photos.json")


def draw_rows(photos: Photos, count: int, chance: random.Random) -> list[int]:
    """Draw distinct rows, half of them from one set: strangers that look alike are the ones to learn from."""
    name = chance.choice(sorted(photos.sets))
    members = photos.sets[name]
    rows = {int(members[chance.randrange(len(members))]) for _ in range(count // 2)}
    while len(rows) < min(count, len(photos)):
        rows.add(chance.randrange(len(photos)))
    return sorted(rows)
