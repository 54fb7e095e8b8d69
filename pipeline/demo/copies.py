"""Plant copies of images of the web, of pairs, and of evaluation images; and write the evaluation sets."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from dedup.copies.drawing import stickers
from dedup.copies.edits import EDITS, Edit, edited_by
from pipeline.config.fetch import FetchConfig
from pipeline.demo.captions import LANGUAGES, english
from pipeline.demo.drawing import draw, encode
from pipeline.demo.ledger import Copies, Count, Fate, Overlap
from pipeline.demo.publishing import PAGE_HOSTS, Mention, Publisher
from pipeline.demo.scenes import COLOURS, SHAPES, Scene, Thing, held_out_scenes
from pipeline.fetching.images import store_image
from pipeline.records import Reason

OBJECTS_SET = "objects"  # classes "red circle", ...; copies of some of its pictures are on the web
SHAPES_SET = "shapes"  # classes "circle", ... in all colours; none of its pictures is
OBJECTS_PER_CLASS = 4
IMAGE_SIZE = 128
"""The demo's `fetch.image_size`, in pixels."""
_COPIES_OF_EACH_KIND = 12
_NEAR_BITS = 10  # well within `dedup.max_distance_bits`
_EDITS = {
    "cropped copy": EDITS["crop 80%"],
    "copy with a border": EDITS["border 10% black"],
    "screenshot of it": EDITS["screenshot"],
    "rotated copy": EDITS["rotate 8"],
    "copy under a sticker": stickers(1, 0.15),  # larger ones hide most of a drawn scene
}
"""Kinds of edited copies; most are found by the copy detector only."""
_FETCH = FetchConfig(network=False, image_size=IMAGE_SIZE)


def _smaller(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width * 6 // 10, picture.height * 6 // 10), Image.Resampling.LANCZOS)


def _darker(picture: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(0.94)


def _mirrored(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def plant_copies(web: Publisher) -> None:
    """Plant all copies that the dedup stage and the plan's removal of repeated pairs must find."""
    _exact_copies(web)
    _near_copies(web, "recompressed copy", 12, lambda picture: encode(picture, "JPEG", 40))
    _near_copies(web, "smaller copy", 12, lambda picture: encode(_smaller(picture), "JPEG"))
    _near_copies(web, "darker copy", 12, lambda picture: encode(_darker(picture), "JPEG"))
    _near_copies(web, "sideways copy, upright by EXIF", 6, _sideways)
    _several_captions(web)
    _repeated_pairs(web)


def _exact_copies(web: Publisher) -> None:
    groups = []
    for number in range(40):
        scene = next(web.scenes)
        body = encode(draw(scene), "JPEG")
        urls = [web.new_url(host) for host in ("cdn.example", "mirror.example", "uploads.example")[: 2 + number % 2]]
        for url in urls:
            web.body(url, body)
        groups.append(_mention_each(web, urls, scene))
    web.ledger.copies.append(Copies("same file under another URL", Reason.EXACT_DUPLICATE, tuple(groups)))


def _near_copies(web: Publisher, kind: str, count: int, edit: Callable[[Image.Image], bytes]) -> None:
    groups: list[tuple[str, ...]] = []
    while len(groups) < count:
        scene = next(web.scenes)
        picture = draw(scene)
        original, copy = encode(picture, "JPEG"), edit(picture)
        if _stored_distance_bits(original, copy) > _NEAR_BITS:
            continue  # of some fine patterns little is left in a copy of this size: no fingerprint would know it
        urls = [web.new_url("cdn.example"), web.new_url("mirror.example")]
        web.body(urls[0], original)
        web.body(urls[1], copy)
        groups.append(_mention_each(web, urls, scene))
    web.ledger.copies.append(Copies(kind, Reason.NEAR_DUPLICATE, tuple(groups)))


def _stored_distance_bits(original: bytes, copy: bytes) -> int:
    hashes = (int.from_bytes(store_image(body, _FETCH).pdq) for body in (original, copy))
    return (next(hashes) ^ next(hashes)).bit_count()


def _sideways(picture: Image.Image) -> bytes:
    """Store a rotated image, with the EXIF tag that tells viewers to rotate it back."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn clockwise by 90 degrees to view
    stream = io.BytesIO()
    picture.transpose(Image.Transpose.ROTATE_90).save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()


def _several_captions(web: Publisher) -> None:
    """Publish one image with an alt and a title text: two pairs of one URL."""
    groups = []
    for _ in range(20):
        scene = next(web.scenes)
        url = web.picture("cdn.example", scene)
        alt = Mention(url, web.caption(scene, "en", in_collection=True), "alt")
        title = Mention(url, web.caption(scene, web.rng.choice(LANGUAGES[1:]), in_collection=True), "title")
        web.mention(web.rng.choice(PAGE_HOSTS), alt, title)
        groups.append((alt.uid, title.uid))
    web.ledger.copies.append(Copies("one image, two captions", Reason.OTHER_CAPTION_OF_SAME_IMAGE, tuple(groups)))


def _mention_each(web: Publisher, urls: list[str], scene: Scene) -> tuple[str, ...]:
    mentions = [Mention(url, web.caption(scene, in_collection=True)) for url in urls]
    for mention in mentions:
        web.mention(web.rng.choice(PAGE_HOSTS), mention)
    return tuple(mention.uid for mention in mentions)


def _repeated_pairs(web: Publisher) -> None:
    """Publish the same image with the same text on several sites, and twice within one <img>."""
    uids, mentions = [], 0
    for number in range(30):
        mention = _fresh_mention(web)
        hosts = PAGE_HOSTS[: 2 + number % 3]
        for host in hosts:
            web.mention(host, mention)
        mentions += len(hosts)
        uids.append(mention.uid)
    web.ledger.counts.append(Count("same pair on another site", "plan", Reason.DUPLICATE_PAIR, mentions - len(uids)))
    twice = [_fresh_mention(web) for _ in range(12)]
    for mention in twice:
        fields = (replace(mention, field="alt"), replace(mention, field="title"))
        web.mention(web.rng.choice(PAGE_HOSTS), *fields)
    web.ledger.counts.append(Count("title repeats the alt text", "pairs", Reason.REPEATED_TEXT, len(twice)))
    uids += [mention.uid for mention in twice]
    web.ledger.fates.append(Fate("pair mentioned more than once", (), tuple(uids)))


def _fresh_mention(web: Publisher) -> Mention:
    scene = next(web.scenes)
    return Mention(web.picture("cdn.example", scene), web.caption(scene, in_collection=True))


def plant_evals(web: Publisher, directory: Path) -> None:
    """Write the evaluation sets to `directory`/NAME/CLASS/NN.png, and copies of some examples to the web."""
    seed = web.ledger.seed
    classes = {english(thing): list(held_out_scenes(thing, seed, OBJECTS_PER_CLASS)) for thing in _things()}
    _write_set(directory / OBJECTS_SET, classes)
    _write_set(directory / SHAPES_SET, {shape: _in_all_colours(shape, seed) for shape in SHAPES})
    examples = [
        (f"{label}/{number:02d}.png", s) for label, scenes in classes.items() for number, s in enumerate(scenes)
    ]
    web.rng.shuffle(examples)
    copies: list[tuple[str, bool, Callable[[str, Image.Image], None]]] = [
        ("exact copy", False, lambda url, picture: web.body(url, encode(picture, "PNG"), "image/png")),
        ("recompressed copy", False, lambda url, picture: web.body(url, encode(picture, "JPEG", 50))),
        ("smaller copy", False, lambda url, picture: web.body(url, encode(_smaller(picture), "JPEG"))),
        ("mirrored copy", False, lambda url, picture: web.body(url, encode(_mirrored(picture), "JPEG"))),
        *((kind, True, partial(_edited_copy, web, kind, edit)) for kind, edit in _EDITS.items()),
    ]
    for kind, is_edited, copy in copies:
        matches = {}
        for number in range(_COPIES_OF_EACH_KIND):
            eval_id, scene = examples.pop()
            caption = web.caption(scene, in_collection=True)
            if number == 0:  # the report shows captions of copies: one of them tries to run there
                caption += f" {web.ledger.hostile_markup}"
            mention = Mention(web.new_url("cdn.example"), caption)
            copy(mention.url, draw(scene))
            web.mention(web.rng.choice(PAGE_HOSTS), mention)
            matches[mention.uid] = eval_id
        web.ledger.overlaps.append(Overlap(kind, OBJECTS_SET, matches, is_edited))
    web.ledger.eval_sets = {
        OBJECTS_SET: len(classes) * OBJECTS_PER_CLASS,
        SHAPES_SET: len(SHAPES) * len(COLOURS),
    }


def _edited_copy(web: Publisher, kind: str, edit: Edit, url: str, picture: Image.Image) -> None:
    rgb = np.asarray(picture)
    web.body(url, edited_by(edit, rgb, rgb, f"{kind}:{url}"))


def _things() -> list[Thing]:
    return [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]


def _in_all_colours(shape: str, seed: int) -> list[Scene]:
    # Another seed than the objects set has, or the two sets would share pictures.
    return [scene for colour in COLOURS for scene in held_out_scenes(Thing(colour, shape), seed + 1, 1)]


def _write_set(directory: Path, classes: dict[str, list[Scene]]) -> None:
    for label, scenes in classes.items():
        (directory / label).mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes):
            (directory / label / f"{number:02d}.png").write_bytes(encode(draw(scene), "PNG"))
