"""Measure which edits of a photo PDQ recognises, and how often different photos match.

    python -m benchmarks.pdq_recall PHOTOS [--limit 500]

PHOTOS is a folder, or a tar file, of photos that all differ. Every edit is made with Pillow on every photo; recall is
the fraction of edited copies within 15 bits (the threshold inside a set) and within 31 bits (against evaluation sets),
the latter also with the eight views of an evaluation index.
"""

import argparse
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.table import Table

from dedup.decode import decode_rgb
from dedup.hamming import search_by_scan
from dedup.pdq import fingerprint, fingerprint_views

Edit = Callable[[Image.Image], Image.Image]


def longest_side(px: int) -> Edit:
    return lambda photo: photo.resize(_scaled(photo, px / max(photo.size)), Image.Resampling.LANCZOS)


def jpeg(quality: int) -> Edit:
    def edit(photo: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return edit


def cropped(share: float) -> Edit:
    """Cut off a fraction `share` of the width and of the height, half of it on each side."""

    def edit(photo: Image.Image) -> Image.Image:
        x, y = round(photo.width * share / 2), round(photo.height * share / 2)
        return photo.crop((x, y, photo.width - x, photo.height - y))

    return edit


def bordered(share: float) -> Edit:
    return lambda photo: ImageOps.expand(photo, round(max(photo.size) * share), "black")


def turned(degrees: float) -> Edit:
    return lambda photo: photo.rotate(degrees, Image.Resampling.BICUBIC, expand=degrees % 90 == 0)


def watermarked(photo: Image.Image) -> Image.Image:
    marked = photo.copy()
    size = max(10, photo.height // 8)
    ImageDraw.Draw(marked).text((photo.width * 0.1, photo.height * 0.8), "© example.org", "white", font_size=size)
    return marked


EDITS: dict[str, Edit] = {
    "longest side 512 px": longest_side(512),
    "longest side 256 px": longest_side(256),
    "longest side 128 px": longest_side(128),
    "longest side 64 px": longest_side(64),
    "longest side 32 px": longest_side(32),
    "squeezed to 224 x 224": lambda photo: photo.resize((224, 224), Image.Resampling.BICUBIC),
    "JPEG quality 50": jpeg(50),
    "JPEG quality 10": jpeg(10),
    "256 px, JPEG 75": lambda photo: jpeg(75)(longest_side(256)(photo)),
    "grey": lambda photo: ImageOps.grayscale(photo).convert("RGB"),
    "brightness + 30 %": lambda photo: ImageEnhance.Brightness(photo).enhance(1.3),
    "contrast + 50 %": lambda photo: ImageEnhance.Contrast(photo).enhance(1.5),
    "saturation x 2": lambda photo: ImageEnhance.Color(photo).enhance(2),
    "histogram equalised": ImageOps.equalize,
    "blur, 1 % of the width": lambda photo: photo.filter(ImageFilter.GaussianBlur(photo.width / 100)),
    "sharpened": lambda photo: photo.filter(ImageFilter.UnsharpMask(3, 200)),
    "line of text on it": watermarked,
    "mirrored": ImageOps.mirror,
    "turned by 90°": turned(90),
    "turned by 180°": turned(180),
    "turned by 1°": turned(1),
    "turned by 3°": turned(3),
    "turned by 10°": turned(10),
    "black border of 1 %": bordered(0.01),
    "black border of 3 %": bordered(0.03),
    "cropped by 1 %": cropped(0.01),
    "cropped by 2 %": cropped(0.02),
    "cropped by 5 %": cropped(0.05),
    "cropped by 10 %": cropped(0.10),
    "cropped by 30 %": cropped(0.30),
    "colours inverted": ImageOps.invert,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--limit", type=int, default=500)
    arguments = parser.parse_args()
    photos = [
        decode_rgb(content) for content, _ in zip(read_files(arguments.photos), range(arguments.limit), strict=False)
    ]
    print_figures(measure(photos))


def read_files(path: Path) -> Iterator[bytes]:
    """Yield image files, spread evenly over the folder or tar in the order of a fixed hash of their names."""
    if path.is_dir():
        for file in sorted(path.rglob("*.jpg"), key=lambda file: hash_of(str(file.relative_to(path)))):
            yield file.read_bytes()
        return
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar if member.name.endswith(".jpg")}
        for name in sorted(members, key=hash_of):
            yield tar.extractfile(members[name]).read()


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode()) * 0x9E3779B97F4A7C15 % 2**64


def measure(photos: list[np.ndarray]) -> dict[str, float]:
    """Return, per edit, the recall at 15 bits, at 31 bits, at 31 bits with views, and the median distance."""
    views = np.stack([np.stack([as_row(pdq) for _, pdq in fingerprint_views(photo)]) for photo in photos])
    figures: dict[str, float] = {"photos": len(photos)} | different_photos(views[:, 0])
    for name, edit in EDITS.items():
        edited = [fingerprint(np.asarray(edit(Image.fromarray(photo)))).pdq for photo in photos]
        distances = np.bitwise_count(views ^ np.stack([as_row(pdq) for pdq in edited])[:, None]).sum(axis=2)
        figures |= {
            f"{name}: 15": float((distances[:, 0] <= 15).mean()),
            f"{name}: 31": float((distances[:, 0] <= 31).mean()),
            f"{name}: views": float((distances.min(axis=1) <= 31).mean()),
            f"{name}: median": float(np.median(distances[:, 0])),
        }
    return figures


def different_photos(hashes: np.ndarray) -> dict[str, float]:
    """Count the pairs of photos that are near each other."""
    found = search_by_scan(hashes, hashes, 31)
    pair = found.query_rows < found.index_rows
    near = found.distances[pair]
    return {
        "pairs": len(hashes) * (len(hashes) - 1) // 2,
        "pairs <= 15": int((near <= 15).sum()),
        "pairs <= 31": len(near),
    }


def as_row(pdq: bytes) -> np.ndarray:
    return np.frombuffer(pdq, np.uint8)


def _scaled(photo: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def print_figures(figures: dict[str, float]) -> None:
    table = Table(title=f"{figures['photos']:.0f} photos: copies found")
    for heading in ("edit", "<= 15 bits", "<= 31 bits", "<= 31, 8 views", "median bits"):
        table.add_column(heading, justify="left" if heading == "edit" else "right")
    for name in EDITS:
        shares = [f"{figures[f'{name}: {kind}']:.1%}" for kind in ("15", "31", "views")]
        table.add_row(name, *shares, f"{figures[f'{name}: median']:.0f}")
    Console(width=100).print(table)
    near, nearer = figures["pairs <= 31"], figures["pairs <= 15"]
    print(f"of {figures['pairs']:,} pairs of photos, {nearer} are within 15 bits and {near} within 31")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
