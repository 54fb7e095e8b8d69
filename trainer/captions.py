"""Which captions a sample has: its txt, texts or lists of texts in its json or its annotations; and which are used."""

from dataclasses import dataclass
from typing import Any, Literal

import orjson

from trainer.annotations import PREFIX
from trainer.shards import Sample

Choice = Literal["first", "any"]


@dataclass(frozen=True)
class CaptionRule:
    """`keys` are "txt", keys of the json or of annotations; none: the json's `captions` if it lists any, else the txt.

    `choice`: the first caption, or one drawn at each visit. With neither keys nor a draw, only the txt is read.
    """

    choice: Choice = "first"
    keys: tuple[str, ...] = ()

    @property
    def reads_json(self) -> bool:
        """Whether the sample's json is needed."""
        of_json = [key for key in self.keys if key != "txt" and key not in self.annotations]
        return bool(of_json) if self.keys else self.choice == "any"

    @property
    def annotations(self) -> tuple[str, ...]:
        """The keys of annotations."""
        return tuple(key for key in self.keys if key.startswith(PREFIX))

    def captions(self, sample: Sample) -> list[str]:
        """Return the sample's captions that are not blank, in the order of the keys."""
        return _captions_of(sample, self.keys) if self.keys else stored_captions(sample)


def stored_captions(sample: Sample) -> list[str]:
    """Return the non-blank `captions` of the sample's json if it was read and lists any, else its txt."""
    value = _json(sample).get("captions") if sample.json else None
    listed = _texts(value) if isinstance(value, list) else []
    return _stripped(listed or _txt(sample))


def _captions_of(sample: Sample, keys: tuple[str, ...]) -> list[str]:
    metadata = (_json(sample) if sample.json else {}) | sample.annotations
    return _stripped([text for key in keys for text in (_txt(sample) if key == "txt" else _texts(metadata.get(key)))])


def _stripped(captions: list[str]) -> list[str]:
    return [stripped for caption in captions if (stripped := caption.strip())]


def _txt(sample: Sample) -> list[str]:
    return [] if sample.text is None else [sample.text.decode("utf-8", "replace")]


def _json(sample: Sample) -> dict[str, Any]:
    try:
        content = orjson.loads(sample.json or b"")
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
