"""Published lists by name: which columns they have, and how a row of a table becomes an image with its texts.

Columns are written as alternatives, because lists are passed on with other headers than their authors gave them: the
first that a file has counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from pipeline.config.sources import SourceConfig
from pipeline.errors import UserError
from pipeline.records import Reason
from pipeline.sources.batch import BatchBuilder, Origin
from pipeline.sources.webdataset import kept_columns

_MAX_NAMES_LISTED = 20


@dataclass(frozen=True)
class Preset:
    """A published list; `captions` are alternatives, each of one or more columns, every one of them a text."""

    url: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    files: str  # what its authors call them
    licence: str  # of the list; that of the images is their owners' business
    page_url: tuple[str, ...] = ()
    sha256: tuple[str, ...] = ()
    header: bool = True  # of csv and tsv
    is_encoded: bool = False  # texts are percent-encoded, with + for spaces


_TEXT = (("TEXT",), ("text",), ("caption",))
PRESETS: dict[str, Preset] = {
    "laion2b": Preset(("URL", "url"), _TEXT, "part-*.parquet", "CC BY 4.0"),
    "laion400m": Preset(("URL", "url"), _TEXT, "part-*.parquet", "CC BY 4.0"),
    "datacomp": Preset(("url",), (("text",),), "*.parquet", "CC BY 4.0", sha256=("sha256",)),
    "coyo": Preset(("url",), (("text",),), "part-*.parquet", "CC BY 4.0"),
    "cc3m": Preset(
        ("2", "image_url", "url"),
        (("1",), ("caption",)),
        "Train_GCC-training.tsv, Validation_GCC-1.1.0-Validation.tsv",
        "any purpose, with attribution (Google)",
        header=False,
    ),
    "cc12m": Preset(
        ("1", "image_url", "url"),
        (("2",), ("caption",)),
        "cc12m.tsv",
        "any purpose, with attribution (Google)",
        header=False,
    ),
    "yfcc15m": Preset(
        ("downloadurl", "url"),
        (("title_clean", "description_clean"), ("title", "description"), ("caption",)),
        "the metadata of YFCC100M for the ids of OpenAI's subset, with a header",
        "CC licences of the photos, in licenseurl",
        page_url=("pageurl",),
        is_encoded=True,
    ),
    "redcaps": Preset(
        ("url",), (("raw_caption",), ("caption",)), "<subreddit>_<year>.json", "CC BY 4.0", page_url=("permalink",)
    ),
    "sbu": Preset(("image_urls",), (("captions",),), "sbu-captions-all.json", "not stated"),
    "wit-google": Preset(
        ("image_url",),
        (("caption_reference_description", "caption_attribution_description", "caption_alt_text_description"),),
        "wit_v1.train.all-*.tsv.gz",
        "CC BY-SA 3.0",
        page_url=("page_url",),
    ),
    "coco": Preset(("coco_url",), (("caption",),), "captions_train2017.json", "CC BY 4.0", page_url=("flickr_url",)),
    "visual-genome": Preset(
        ("url",), (("phrase",),), "region_descriptions.json, with image_data.json beside", "CC BY 4.0"
    ),
}


@dataclass
class Layout:
    """Where in the rows of a table the URL and the texts are; `find` says so once the names of the columns are known.

    The columns of a row that is given to `add` are those of `columns`, in this order.
    """

    source: SourceConfig

    def __post_init__(self) -> None:
        preset, given = PRESETS.get(self.source.preset or ""), self.source.model_fields_set
        own_captions = (self.source.caption,) if isinstance(self.source.caption, str) else self.source.caption
        self.is_encoded = preset is not None and preset.is_encoded
        self.header = self.source.header if preset is None or "header" in given else preset.header
        self._url = (self.source.url,) if preset is None or "url" in given else preset.url
        self._captions = (own_captions,) if preset is None or "caption" in given else preset.captions
        page_url = (self.source.page_url,) if self.source.page_url is not None else ()
        self._page_url = page_url or (preset.page_url if preset is not None else ())
        own_hashes = {"sha256": self.source.sha256, "md5": self.source.md5}
        stated: dict[str, tuple[str, ...]] = {kind: (name,) for kind, name in own_hashes.items() if name is not None}
        self._stated = stated or ({"sha256": preset.sha256} if preset is not None and self.source.verify else {})
        self._has_preset = preset is not None
        self._choose(self._url[0], self._captions[0], self._page_url[:1], {k: v[:1] for k, v in self._stated.items()})

    def find(self, names: Sequence[str], path: str) -> list[str]:
        """Choose the columns among those of a file; return them.

        Raises:
            UserError: one is not there, or is there twice.
        """
        url = next((name for name in self._url if name in names), self._url[0])
        captions = next((one for one in self._captions if any(name in names for name in one)), self._captions[0])
        page_url, stated = self._page_url, self._stated
        if self._has_preset:  # which columns are missing is for the list's authors to say
            captions = tuple(name for name in captions if name in names) or captions
            page_url = tuple(name for name in page_url if name in names)
            stated = {kind: tuple(name for name in some if name in names) for kind, some in stated.items()}
        self._choose(url, captions, page_url[:1], {kind: some[:1] for kind, some in stated.items()})
        for name in self.columns:
            if names.count(name) != 1:
                problem = (
                    f"{names.count(name)} columns have the name {name!r}" if name in names else f"no column {name!r}"
                )
                more = [f"{len(names) - _MAX_NAMES_LISTED:,} more"] if len(names) > _MAX_NAMES_LISTED else []
                listed = [repr(name[:64]) for name in names[:_MAX_NAMES_LISTED]]
                raise UserError(f"{path}: {problem}; its columns are {', '.join(listed + more)}{self._hint()}")
        return self.columns

    def _hint(self) -> str:
        """Return what a preset expects, for a file that is not as its list."""
        preset = PRESETS.get(self.source.preset or "")
        if preset is None:
            return ""
        return (
            f"; preset = {self.source.preset!r} is for {preset.files}: choose another preset, or name the columns "
            "with url and caption"
        )

    def _choose(
        self, url: str, captions: tuple[str, ...], page_url: tuple[str, ...], stated: dict[str, tuple[str, ...]]
    ) -> None:
        self.captions = captions
        self.stated = {kind: some[0] for kind, some in stated.items() if some}
        self.columns = [*dict.fromkeys([url, *captions, *page_url, *self.stated.values(), *self.source.keep])]
        self.text_columns = frozenset([url, *captions, *page_url, *self.stated.values()])
        self._at = {name: self.columns.index(name) for name in self.columns}
        self._caption_places = [self._at[name] for name in captions]
        self._page_place = self._at[page_url[0]] if page_url else None
        is_rewritten = self.is_encoded or self.source.preset == "redcaps"
        self._is_plain = len(captions) == 1 and not self.stated and not self.source.keep and not is_rewritten

    def add(self, builder: BatchBuilder, values: Sequence[Any]) -> None:
        """Judge a row: a text in each of the columns of captions; one row without a text if there is none."""
        page = values[self._page_place] if self._page_place is not None else None
        url = values[0]
        if self._is_plain:
            builder.add_row(url, values[self._caption_places[0]], page)
            return
        texts = [(name, values[place]) for name, place in zip(self.captions, self._caption_places, strict=True)]
        if self.is_encoded:
            url = _decoded(url)
            texts = [(name, _decoded(text)) for name, text in texts]
            page = _decoded(page)
        if page and page.startswith("/r/"):
            page = f"https://www.reddit.com{page}"
        origin = Origin(
            stated_hash=self._hash(values),
            extra=kept_columns({name: values[self._at[name]] for name in self.source.keep}, self.source.keep),
        )
        filled = [(name, text) for name, text in texts if text and not text.isspace()]
        if not filled:
            builder.dropped[Reason.NO_CAPTION] += 1
        for name, text in filled:
            builder.add_row(url, text, page, origin, field=name if len(self.captions) > 1 else "caption")

    def _hash(self, values: Sequence[Any]) -> str | None:
        for kind, name in self.stated.items():
            value = values[self._at[name]]
            if value and len(value) == {"sha256": 64, "md5": 32}[kind]:
                return f"{kind}:{value.lower()}"
        return None


def _decoded(text: str | None) -> str | None:
    """Return a field of YFCC100M as its author wrote it."""
    return unquote_plus(text) if text and ("%" in text or "+" in text) and " " not in text else text
