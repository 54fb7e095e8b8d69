"""Scenes are described truly, drawn the same way every time, and far apart as pictures."""

import hashlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from dedup.pdq import fingerprint, fingerprint_views
from pipeline.demo.captions import LANGUAGES, say
from pipeline.demo.drawing import draw, encode
from pipeline.demo.scenes import COLOURS, SHAPES, Scene, Thing, held_out_scenes, is_held_out, training_scenes


def first_scenes(seed: int, count: int) -> list[Scene]:
    return list(itertools.islice(training_scenes(seed), count))


def test_the_same_seed_gives_the_same_scenes_and_the_same_bytes() -> None:
    def world() -> str:
        pictures = b"".join(encode(draw(scene), "JPEG") for scene in first_scenes(3, 20))
        return hashlib.sha256(pictures).hexdigest()

    assert world() == world()
    assert first_scenes(3, 20) != first_scenes(4, 20)


def test_held_out_scenes_never_appear_in_training() -> None:
    seen = {(thing, scene.background, scene.pattern) for scene in first_scenes(5, 3_000) for thing in scene.things}
    assert not [combination for combination in seen if is_held_out(*combination)]
    for thing in (Thing("red", "circle"), Thing("black", "ring")):
        for scene in held_out_scenes(thing, 5, 10):
            assert scene.things == (thing,)
            assert (thing, scene.background, scene.pattern) not in seen


def test_every_kind_of_scene_occurs_and_objects_stand_out() -> None:
    scenes = first_scenes(1, 500)
    assert {scene.count for scene in scenes} == {1, 2, 3, 4, 5}
    assert {scene.relation for scene in scenes} == {"", "above", "below", "left", "right"}
    assert {thing.colour for scene in scenes for thing in scene.things} == set(COLOURS)
    assert {thing.shape for scene in scenes for thing in scene.things} == set(SHAPES)
    assert all(thing.colour != scene.background for scene in scenes for thing in scene.things)


ABOVE = Scene((Thing("red", "circle"), Thing("blue", "square")), "green", "striped", 1, relation="above")
THREE = Scene((Thing("orange", "star"),), "white", "plain", 1, count=3)
LARGE = Scene((Thing("purple", "crescent"),), "orange", "dotted", 1, size="large")


@pytest.mark.parametrize(
    ("scene", "language", "caption"),
    [
        (ABOVE, "en", "a red circle above a blue square on a striped green background"),
        (ABOVE, "de", "ein roter Kreis über einem blauen Quadrat auf grün gestreiftem Hintergrund"),
        (ABOVE, "fr", "un cercle rouge au-dessus d'un carré bleu sur fond vert rayé"),
        (ABOVE, "es", "un círculo rojo encima de un cuadrado azul sobre fondo verde a rayas"),
        (ABOVE, "zh", "绿色条纹背景上，一个红色圆形在蓝色正方形的上方"),
        (ABOVE, "ja", "緑色の縞模様の背景で、青い正方形の上に赤い円"),
        (THREE, "en", "three orange stars on a white background"),
        (THREE, "de", "drei orangefarbene Sterne auf weißem Hintergrund"),
        (THREE, "fr", "trois étoiles orange sur fond blanc"),
        (THREE, "es", "tres estrellas naranjas sobre fondo blanco"),
        (LARGE, "en", "a large purple crescent on a dotted orange background"),
        (LARGE, "de", "eine große violette Mondsichel auf orangefarben gepunktetem Hintergrund"),
        (LARGE, "fr", "un grand croissant violet sur fond orange à pois"),
        (LARGE, "es", "una medialuna morada grande sobre fondo naranja de lunares"),
    ],
)
def test_captions_follow_the_grammar(scene: Scene, language: str, caption: str) -> None:
    assert say(scene, language) == caption


@pytest.mark.parametrize(
    ("language", "subject", "background"),
    [
        ("en", "a red circle above a blue square", "a red circle above a blue square on a green background"),
        ("de", "ein roter Kreis über einem blauen Quadrat", " auf grünem Hintergrund"),
        ("fr", "un cercle rouge au-dessus d'un carré bleu", " sur fond vert"),
        ("es", "un círculo rojo encima de un cuadrado azul", " sobre fondo verde"),
        ("zh", "一个红色圆形在蓝色正方形的上方", "绿色背景上，"),
        ("ja", "青い正方形の上に赤い円", "緑色の背景で、"),
    ],
)
def test_captions_can_leave_things_out(language: str, subject: str, background: str) -> None:
    assert say(ABOVE, language, "subject") == subject
    short = say(ABOVE, language, "background")
    assert subject in short
    assert background in short
    assert "large" not in say(LARGE, "en", "background")


def test_scenes_that_differ_in_words_differ_in_captions() -> None:
    """A caption tells everything that a scene says: no two descriptions share one, in any language."""
    described = {(s.things, s.background, s.pattern, s.count, s.relation, s.size): s for s in first_scenes(2, 2_000)}
    for language in LANGUAGES:
        assert len({say(scene, language) for scene in described.values()}) == len(described)


def test_objects_are_drawn_where_the_caption_says() -> None:
    for relation, axis, sign in (("above", 0, 1), ("below", 0, -1), ("left", 1, 1), ("right", 1, -1)):
        scene = Scene((Thing("red", "square"), Thing("blue", "square")), "white", "plain", 9, relation=relation)
        pixels = np.asarray(draw(scene)).astype(int)
        red = np.argwhere(pixels[:, :, 0] - pixels[:, :, 2] > 60).mean(axis=0)
        blue = np.argwhere(pixels[:, :, 2] - pixels[:, :, 0] > 60).mean(axis=0)
        assert sign * (blue[axis] - red[axis]) > 40


def test_pictures_are_textured_and_far_apart_in_every_view() -> None:
    """No two pictures come near the widest threshold (31 bits), not even turned or mirrored."""
    pictures = [np.asarray(draw(scene)) for scene in first_scenes(7, 150)]
    assert min(fingerprint(picture).quality for picture in pictures) >= 60
    views = [[_bits(pdq) for _, pdq in fingerprint_views(picture)] for picture in pictures]
    for first, second in itertools.combinations(views, 2):
        assert min((first[0] ^ view).bit_count() for view in second) > 45


def _bits(pdq: bytes) -> int:
    return int.from_bytes(pdq, "big")


def test_picture_sizes_and_encodings() -> None:
    for scene in first_scenes(1, 50):
        width, height = draw(scene).size
        assert 160 <= min(width, height) <= max(width, height) <= 400
        assert max(width, height) <= 1.4 * min(width, height)
    picture = draw(ABOVE, 128, 96)
    assert picture.size == (128, 96)
    for kind in ("JPEG", "PNG", "WEBP", "GIF"):
        encoded = encode(picture, kind)
        assert _format(encoded) == kind


def _format(encoded: bytes) -> str | None:
    return Image.open(io.BytesIO(encoded)).format
