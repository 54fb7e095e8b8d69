"""True captions for scenes, in six languages.

Small grammars: a word table per language and a few sentence patterns, with gender, case and number where the language
has them. `say(scene, "de")` might give "ein roter Kreis über einem blauen Quadrat auf grün gestreiftem Hintergrund".

Captions of the web seldom say all there is to see, so `say` can leave things out. A model needs that: if every caption
told the whole scene, each would be nearly unique, and learning pictures by heart would pay more than learning words.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pipeline.demo.scenes import Scene, Thing

LANGUAGES = ("en", "de", "fr", "es", "zh", "ja")


Detail = Literal["subject", "background", "all"]


def say(scene: Scene, language: str, detail: Detail = "all") -> str:
    """Return a caption that is true of the scene.

    `detail`: "subject" names the objects only, "background" also its colour, "all" also sizes and patterns.
    """
    if detail == "subject":
        scene = replace(scene, background="", pattern="plain", size="")
    elif detail == "background":
        scene = replace(scene, pattern="plain", size="")
    return _GRAMMARS[language](scene)


def english(thing: Thing) -> str:
    """Name one object, as evaluation classes are named: "red circle"."""
    return f"{thing.colour} {thing.shape}"


_EN_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_EN_RELATIONS = {"above": "above", "below": "below", "left": "to the left of", "right": "to the right of"}


def _en(scene: Scene) -> str:
    first = scene.things[0]
    if scene.count > 1:
        subject = f"{_EN_NUMBERS[scene.count]} {english(first)}{'es' if first.shape == 'cross' else 's'}"
    else:
        subject = _en_article(f"{scene.size} {english(first)}".strip())
    if scene.relation:
        subject += f" {_EN_RELATIONS[scene.relation]} {_en_article(english(scene.things[1]))}"
    if not scene.background:
        return subject
    background = f"{scene.background} background"
    return f"{subject} on {_en_article(background if scene.pattern == 'plain' else f'{scene.pattern} {background}')}"


def _en_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


_DE_NOUNS = {
    "circle": ("m", "Kreis", "Kreise"),
    "square": ("n", "Quadrat", "Quadrate"),
    "triangle": ("n", "Dreieck", "Dreiecke"),
    "star": ("m", "Stern", "Sterne"),
    "heart": ("n", "Herz", "Herzen"),
    "cross": ("n", "Kreuz", "Kreuze"),
    "crescent": ("f", "Mondsichel", "Mondsicheln"),
    "ring": ("m", "Ring", "Ringe"),
}
_DE_COLOURS = {
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "violett",
    "white": "weiß",
    "black": "schwarz",
}
_DE_PATTERNS = {"striped": "gestreift", "checkered": "kariert", "dotted": "gepunktet", "wavy": "gewellt"}
_DE_RELATIONS = {"above": "über", "below": "unter", "left": "links von", "right": "rechts von"}
_DE_NUMBERS = {2: "zwei", 3: "drei", 4: "vier", 5: "fünf"}
_DE_SIZES = {"small": "klein", "large": "groß", "": ""}


def _de(scene: Scene) -> str:
    first = scene.things[0]
    gender, noun, plural = _DE_NOUNS[first.shape]
    ending = {"m": "er", "f": "e", "n": "es"}[gender]
    if scene.count > 1:
        subject = f"{_DE_NUMBERS[scene.count]} {_DE_COLOURS[first.colour]}e {plural}"
    else:
        size = f"{_DE_SIZES[scene.size]}{ending} " if scene.size else ""
        article = "eine" if gender == "f" else "ein"
        subject = f"{article} {size}{_DE_COLOURS[first.colour]}{ending} {noun}"
    if scene.relation:
        subject += f" {_DE_RELATIONS[scene.relation]} {_de_dative(scene.things[1])}"
    if not scene.background:
        return subject
    if scene.pattern == "plain":
        return f"{subject} auf {_DE_COLOURS[scene.background]}em Hintergrund"
    return f"{subject} auf {_DE_COLOURS[scene.background]} {_DE_PATTERNS[scene.pattern]}em Hintergrund"


def _de_dative(thing: Thing) -> str:
    gender, noun, _ = _DE_NOUNS[thing.shape]
    article = "einer" if gender == "f" else "einem"
    return f"{article} {_DE_COLOURS[thing.colour]}en {noun}"


_FR_NOUNS = {
    "circle": ("m", "cercle", "cercles"),
    "square": ("m", "carré", "carrés"),
    "triangle": ("m", "triangle", "triangles"),
    "star": ("f", "étoile", "étoiles"),
    "heart": ("m", "cœur", "cœurs"),
    "cross": ("f", "croix", "croix"),
    "crescent": ("m", "croissant", "croissants"),
    "ring": ("m", "anneau", "anneaux"),
}
_FR_COLOURS = {
    "red": ("rouge", "rouge"),
    "orange": ("orange", "orange"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "white": ("blanc", "blanche"),
    "black": ("noir", "noire"),
}
_FR_PATTERNS = {"plain": "", "striped": " rayé", "checkered": " à carreaux", "dotted": " à pois", "wavy": " ondulé"}
_FR_RELATIONS = {"above": "au-dessus d'", "below": "au-dessous d'", "left": "à gauche d'", "right": "à droite d'"}
_FR_NUMBERS = {2: "deux", 3: "trois", 4: "quatre", 5: "cinq"}
_FR_SIZES = {"small": ("petit", "petite"), "large": ("grand", "grande")}


def _fr(scene: Scene) -> str:
    first = scene.things[0]
    if scene.count > 1:
        subject = f"{_FR_NUMBERS[scene.count]} {_FR_NOUNS[first.shape][2]} {_fr_colour(first)}"
        subject += "" if first.colour == "orange" else "s"
    else:
        subject = _fr_indefinite(first, scene.size)
    if scene.relation:
        subject += f" {_FR_RELATIONS[scene.relation]}{_fr_indefinite(scene.things[1], '')}"
    if not scene.background:
        return subject
    return f"{subject} sur fond {_FR_COLOURS[scene.background][0]}{_FR_PATTERNS[scene.pattern]}"


def _fr_indefinite(thing: Thing, size: str) -> str:
    gender, noun, _ = _FR_NOUNS[thing.shape]
    adjective = f"{_FR_SIZES[size][gender == 'f']} " if size else ""
    return f"{'une' if gender == 'f' else 'un'} {adjective}{noun} {_fr_colour(thing)}"


def _fr_colour(thing: Thing) -> str:
    return _FR_COLOURS[thing.colour][_FR_NOUNS[thing.shape][0] == "f"]


_ES_NOUNS = {
    "circle": ("m", "círculo", "círculos"),
    "square": ("m", "cuadrado", "cuadrados"),
    "triangle": ("m", "triángulo", "triángulos"),
    "star": ("f", "estrella", "estrellas"),
    "heart": ("m", "corazón", "corazones"),
    "cross": ("f", "cruz", "cruces"),
    "crescent": ("f", "medialuna", "medialunas"),
    "ring": ("m", "anillo", "anillos"),
}
_ES_COLOURS = {
    "red": ("rojo", "roja"),
    "orange": ("naranja", "naranja"),
    "yellow": ("amarillo", "amarilla"),
    "green": ("verde", "verde"),
    "blue": ("azul", "azul"),
    "purple": ("morado", "morada"),
    "white": ("blanco", "blanca"),
    "black": ("negro", "negra"),
}
_ES_PATTERNS = {
    "plain": "",
    "striped": " a rayas",
    "checkered": " a cuadros",
    "dotted": " de lunares",
    "wavy": " ondulado",
}
_ES_RELATIONS = {"above": "encima de", "below": "debajo de", "left": "a la izquierda de", "right": "a la derecha de"}
_ES_NUMBERS = {2: "dos", 3: "tres", 4: "cuatro", 5: "cinco"}
_ES_SIZES = {"small": ("pequeño", "pequeña"), "large": ("grande", "grande")}


def _es(scene: Scene) -> str:
    first = scene.things[0]
    if scene.count > 1:
        subject = f"{_ES_NUMBERS[scene.count]} {_ES_NOUNS[first.shape][2]} {_es_plural(first)}"
    else:
        subject = _es_indefinite(first)
        if scene.size:
            subject += f" {_ES_SIZES[scene.size][_ES_NOUNS[first.shape][0] == 'f']}"
    if scene.relation:
        subject += f" {_ES_RELATIONS[scene.relation]} {_es_indefinite(scene.things[1])}"
    if not scene.background:
        return subject
    return f"{subject} sobre fondo {_ES_COLOURS[scene.background][0]}{_ES_PATTERNS[scene.pattern]}"


def _es_indefinite(thing: Thing) -> str:
    gender, noun, _ = _ES_NOUNS[thing.shape]
    return f"{'una' if gender == 'f' else 'un'} {noun} {_es_colour(thing)}"


def _es_plural(thing: Thing) -> str:
    colour = _es_colour(thing)
    return colour + ("es" if colour.endswith("l") else "s")


def _es_colour(thing: Thing) -> str:
    return _ES_COLOURS[thing.colour][_ES_NOUNS[thing.shape][0] == "f"]


_ZH_COLOURS = dict(
    red="红色", orange="橙色", yellow="黄色", green="绿色", blue="蓝色", purple="紫色", white="白色", black="黑色"
)
_ZH_NOUNS = dict(
    circle="圆形", square="正方形", triangle="三角形", star="五角星",
    heart="心形", cross="十字", crescent="月牙", ring="圆环",
)  # fmt: skip
_ZH_PATTERNS = dict(plain="", striped="条纹", checkered="方格", dotted="圆点", wavy="波浪")
_ZH_RELATIONS = dict(above="上方", below="下方", left="左边", right="右边")
_ZH_NUMBERS = {1: "一", 2: "两", 3: "三", 4: "四", 5: "五"}
_ZH_SIZES = {"small": "小", "large": "大", "": ""}


def _zh(scene: Scene) -> str:
    first = scene.things[0]
    subject = f"{_ZH_NUMBERS[scene.count]}个{_ZH_COLOURS[first.colour]}{_ZH_SIZES[scene.size]}{_ZH_NOUNS[first.shape]}"
    if scene.relation:
        other = scene.things[1]
        subject += f"在{_ZH_COLOURS[other.colour]}{_ZH_NOUNS[other.shape]}的{_ZH_RELATIONS[scene.relation]}"
    if not scene.background:
        return subject
    background = f"{_ZH_COLOURS[scene.background]}{_ZH_PATTERNS[scene.pattern]}背景"
    return f"{background}上，{subject}" if scene.relation else f"{background}上的{subject}"


_JA_COLOURS = dict(
    red="赤い", orange="オレンジ色の", yellow="黄色い", green="緑色の",
    blue="青い", purple="紫色の", white="白い", black="黒い",
)  # fmt: skip
_JA_BACKGROUNDS = dict(
    red="赤", orange="オレンジ色", yellow="黄色", green="緑色", blue="青", purple="紫色", white="白", black="黒"
)
_JA_NOUNS = dict(
    circle="円", square="正方形", triangle="三角形", star="星",
    heart="ハート", cross="十字", crescent="三日月", ring="輪",
)  # fmt: skip
_JA_PATTERNS = dict(plain="", striped="縞模様の", checkered="市松模様の", dotted="水玉模様の", wavy="波模様の")
_JA_RELATIONS = dict(above="上", below="下", left="左", right="右")
_JA_NUMBERS = {2: "二つの", 3: "三つの", 4: "四つの", 5: "五つの", 1: ""}
_JA_SIZES = {"small": "小さな", "large": "大きな", "": ""}


def _ja(scene: Scene) -> str:
    first = scene.things[0]
    subject = f"{_JA_NUMBERS[scene.count]}{_JA_SIZES[scene.size]}{_JA_COLOURS[first.colour]}{_JA_NOUNS[first.shape]}"
    if scene.relation:
        other = scene.things[1]
        place = f"{_JA_COLOURS[other.colour]}{_JA_NOUNS[other.shape]}の{_JA_RELATIONS[scene.relation]}"
        subject = f"{place}に{subject}"
    if not scene.background:
        return subject
    background = f"{_JA_BACKGROUNDS[scene.background]}の{_JA_PATTERNS[scene.pattern]}背景"
    return f"{background}で、{subject}" if scene.relation else f"{background}に{subject}"


_GRAMMARS: dict[str, Callable[[Scene], str]] = {"en": _en, "de": _de, "fr": _fr, "es": _es, "zh": _zh, "ja": _ja}
