"""Publish images with text on the simulated web; every planted item is published through this module."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from pipeline.demo.captions import LANGUAGES, Detail, say
from pipeline.demo.drawing import draw, encode
from pipeline.demo.ledger import Fate, Ledger
from pipeline.demo.scenes import Scene, training_scenes
from pipeline.demo.site import Answer, Site
from pipeline.records import pair_uid

# Names of collections in captions: the long tail of the query list.
COLLECTIONS = (
    "Albatross", "Avocet", "Bittern", "Bluethroat", "Bullfinch", "Bustard", "Buzzard", "Capercaillie", "Cassowary",
    "Chaffinch", "Chiffchaff", "Cormorant", "Corncrake", "Crossbill", "Curlew", "Dabchick", "Dipper", "Dotterel",
    "Dunlin", "Egret", "Eider", "Fieldfare", "Firecrest", "Flamingo", "Fulmar", "Gadwall", "Gannet", "Garganey",
    "Godwit", "Goldcrest", "Goosander", "Goshawk", "Greenshank", "Grebe", "Guillemot", "Gyrfalcon", "Harrier",
    "Hawfinch", "Hobby", "Hoopoe", "Ibis", "Jackdaw", "Kestrel", "Kingfisher", "Kittiwake", "Lapwing", "Linnet",
    "Magpie", "Mallard", "Merganser", "Merlin", "Moorhen", "Nightjar", "Nuthatch", "Oriole", "Osprey", "Ouzel",
    "Partridge", "Peregrine", "Petrel", "Phalarope", "Pintail", "Pipit", "Plover", "Pochard", "Ptarmigan", "Puffin",
    "Quail", "Razorbill", "Redpoll", "Redshank", "Redstart", "Reedling", "Ruff", "Sanderling", "Sandpiper",
    "Shearwater", "Shelduck", "Shoveler", "Shrike", "Siskin", "Skua", "Skylark", "Snipe", "Sparrowhawk",
    "Spoonbill", "Starling", "Stint", "Stonechat", "Stork", "Swift", "Teal", "Tern", "Treecreeper", "Turnstone",
    "Wagtail", "Waxwing", "Wheatear", "Whimbrel", "Whinchat", "Whitethroat", "Wigeon", "Woodcock", "Wren",
    "Wryneck", "Yellowhammer",
)  # fmt: skip
EMPTY_COLLECTIONS = ("Zeppelin", "Quagga", "Dodo", "Moa", "Thylacine", "Aurochs", "Mammoth", "Trilobite")

_SUFFIXES = {
    "en": ", {} collection",
    "de": ", Sammlung {}",
    "fr": ", collection {}",
    "es": ", colección {}",
    "zh": "（{}）",
    "ja": "（{}）",
}
_ENGLISH_SHARE = 0.7
_DETAILS: tuple[Detail, ...] = ("subject", "background", "all")
_DETAIL_WEIGHTS = (55, 25, 20)
_FORMATS = (("JPEG", "jpg", "image/jpeg"), ("PNG", "png", "image/png"), ("WEBP", "webp", "image/webp"))
_FORMAT_WEIGHTS = (90, 6, 4)

PAGE_HOSTS = ("photos.example", "museum.example", "blog.example", "press.example")
TABLE_HOSTS = ("archive.example", "shop.example")

Field = Literal["alt", "title", "figcaption"]


@dataclass(frozen=True, slots=True)
class Mention:
    """An image URL with a text. `field` is the text's position on a page; None: the usual one of the host."""

    url: str
    caption: str
    field: Field | None = None

    @property
    def uid(self) -> str:
        """Return the id of the pair that this becomes."""
        return pair_uid(self.url, self.caption)


@dataclass
class Publisher:
    """The simulated web while it is being generated.

    `mentions` maps a host to the mentions on its pages or in its table, in order; a tuple of mentions is one <img>.
    """

    site: Site
    ledger: Ledger
    mentions: dict[str, list[tuple[Mention, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"web {self.ledger.seed}")
        self.scenes: Iterator[Scene] = training_scenes(self.ledger.seed)
        self._published = 0

    def language(self) -> str:
        """Draw the language of a caption."""
        return "en" if self.rng.random() < _ENGLISH_SHARE else self.rng.choice(LANGUAGES[1:])

    def caption(self, scene: Scene, language: str = "", *, in_collection: bool = False) -> str:
        """Return a true caption; with `in_collection` it matches a rare query, so that balance keeps the pair."""
        language = language or self.language()
        detail = self.rng.choices(_DETAILS, _DETAIL_WEIGHTS)[0]
        if language != "en" and detail == "subject":
            detail = "background"  # a word that is always in the query list, unlike inflected forms of the others
        text = say(scene, language, detail)
        return text + _SUFFIXES[language].format(self.rng.choice(COLLECTIONS)) if in_collection else text

    def new_url(self, host: str, extension: str = "jpg", folder: str = "img") -> str:
        """Return a new URL."""
        self._published += 1
        return f"http://{host}/{folder}/{self._published:05d}.{extension}"

    def picture(self, host: str, scene: Scene, headers: dict[str, str] | None = None) -> str:
        """Publish the image of a scene in one of the usual formats; return its URL."""
        kind, extension, mime = self.rng.choices(_FORMATS, _FORMAT_WEIGHTS)[0]
        url = self.new_url(host, extension)
        self.body(url, encode(draw(scene), kind), mime, headers)
        return url

    def copy(self, host: str, picture: Image.Image, quality: int = 90, kind: str = "JPEG") -> str:
        """Publish a picture made elsewhere; return its URL."""
        url = self.new_url(host, "png" if kind == "PNG" else "jpg")
        self.body(url, encode(picture, kind, quality), f"image/{kind.lower()}")
        return url

    def body(self, url: str, body: bytes, mime: str = "image/jpeg", headers: dict[str, str] | None = None) -> None:
        """Publish any bytes at a URL."""
        self.site.add(url, Answer(file=self.site.store(url, body), headers={"Content-Type": mime, **(headers or {})}))

    def mention(self, host: str, *mentions: Mention) -> None:
        """Add one image with these texts to a page, or to the table, of `host`."""
        self.mentions.setdefault(host, []).append(mentions)

    def plant(self, kind: str, pictures: list[tuple[str, Scene]], *reasons: str, requests: int = 1) -> None:
        """Mention each URL with a true caption that balance keeps; record the expected reasons (none: it is kept)."""
        uids = []
        for url, scene in pictures:
            mention = Mention(url, self.caption(scene, in_collection=True))
            self.mention(self.rng.choice(PAGE_HOSTS), mention)
            uids.append(mention.uid)
            if requests != 1:
                self.ledger.requests[url] = requests
        self.ledger.fates.append(Fate(kind, reasons, tuple(uids)))
