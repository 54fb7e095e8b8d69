"""Conditions on the caption alone. Each is one function of many captions; `text_reasons` applies those of a config.

file_name_caption     IMG_4894   DSC00123.JPG   9f86d081884c7d659a2feaa0c55ad015   untitled-2
url_caption           https://example.org/a   www.example.org   click www.example.org
markup                <b>Dog</b>   &lt;i&gt;dog&lt;/i&gt;   [caption id="7"]   {{ product.title }}
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.filters import FiltersConfig
from pipeline.filters.characters import Characters
from pipeline.records import Reason

REASON = np.dtype("U64")
"""Reasons of many rows, as an array: "" where a row passes."""

_IMAGE_FILE = r"\.(?:jpe?g|jfif|png|gif|webp|avif|heic|bmp|tiff?|svg|ico|pdf|psd|cr2|nef|mp4|mov)"
# What cameras, phones, scanners, messengers and editors call files that nobody has named.
_DEVICE = (
    r"(?:img|imag|image|images|dscn?|dscf|dsc|dcim|pict?|picture|photo|foto|bild|pano|mvi|vid|gopr|dji|pxl|sam|cimg|"
    r"hpim|kif|mg|sdc|scan|scanned|screen ?shot|screenshot|capture|snap|untitled|unnamed|unknown|download|file|"
    r"wa|fb|thumb|thumbnail|slide|copy|attachment|default|noimage|no image|placeholder|pasted image|whatsapp image)"
)
_NUMBER = r"[\s_.()+x×@-]*\d[\d\s_.:()ap-]*(?:at [\d\s_.:apm]+)?m?(?: ?copy)?"
_FILE_NAME = (
    r"(?i)^(?:"
    rf"\S+{_IMAGE_FILE}"  # one word that ends like an image file
    rf"|_?{_DEVICE}(?:{_NUMBER})?(?:-?wa\d+)?(?: ?{_IMAGE_FILE})?"
    rf"|(?:[a-z]{{1,3}}[_-]?\d{{4,}}|\d{{5,}})(?:[_-]\d+)*(?:[_-][a-z]{{1,2}})?(?: ?{_IMAGE_FILE})?"  # P1010023
    r"|[0-9a-f]{12,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # hashes and UUIDs
    r")$"
)
_ADDRESS = (
    r"(?i)(?:\b(?:https?|ftp)://|\bwww\.)\S*"
    r"|\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.(?:com|net|org|info|biz|co|io|edu|gov|de|uk|ru|fr|nl|it|es|pl|cz|jp|cn|br|eu|us|"
    r"ca|au|in|ch|at|be|se|no|dk|fi|hu|ro|gr|tr|ua|kr|tv|me|shop|online|site|store|blog)\b(?:/\S*)?"
)
_NO_LETTERS = r"[^\pL]+"
# Character references alone do not count: `black &amp; white` is a good caption, and of 91 real captions with markup 82
# had nothing but such a one.
_MARKUP = (
    r"(?i)</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|&lt;/?[a-z]|<!--"
    r"|\[/?(?:caption|img|url|b|i|gallery|embed|vc_row|et_pb)\b[^\]]*\]|\{\{|\}\}|\{%|%\}|\$\{|<\?php|\]\]>"
    r"|\b(?:src|href|alt|class|style)=[\"']|%20|\\[un](?:[0-9a-f]{4}|\b)|javascript:|function\s*\("
)
_MIN_WORDS_BESIDE_URL = 2


def is_file_name(captions: pa.StringArray) -> np.ndarray:
    """Return which captions are the name of a file, (n,) bool."""
    return _matches(captions, _FILE_NAME)


def is_address(captions: pa.StringArray) -> np.ndarray:
    """Return which captions are an address, or say fewer than two words beside one, (n,) bool."""
    found = _matches(captions, _ADDRESS)
    places = np.flatnonzero(found)
    without = pc.replace_substring_regex(captions.take(pa.array(places)), _ADDRESS, " ")
    words = pc.utf8_trim_whitespace(pc.replace_substring_regex(without, _NO_LETTERS, " "))
    count = np.where(pc.equal(words, "").to_numpy(zero_copy_only=False), 0, _counts(words, " ") + 1)
    found[places] = count < _MIN_WORDS_BESIDE_URL
    return found


def has_markup(captions: pa.StringArray) -> np.ndarray:
    """Return which captions hold remains of HTML, templates, scripts or percent-encoding, (n,) bool."""
    return _matches(captions, _MARKUP)


def text_reasons(captions: pa.StringArray, config: FiltersConfig) -> np.ndarray:
    """Return why each caption is dropped, (n,) REASON: the first condition of the table that it does not meet."""
    reasons = np.full(len(captions), "", REASON)
    for reason, is_dropped in _conditions(captions, config):
        reasons[is_dropped & (reasons == "")] = reason
    return reasons


def _conditions(captions: pa.StringArray, config: FiltersConfig) -> Iterator[tuple[Reason, np.ndarray]]:
    """Yield the reason of each condition that is on, and which captions do not meet it."""
    characters = Characters.of(captions)
    if config.file_names:
        yield Reason.FILE_NAME_CAPTION, is_file_name(captions)
    if config.urls:
        yield Reason.URL_CAPTION, is_address(captions)
    if config.markup:
        yield Reason.MARKUP, has_markup(captions)
    if config.min_words is not None:
        yield Reason.TOO_FEW_WORDS, (characters.words() < config.min_words) & characters.need_spaces()
    if config.max_words is not None:
        yield Reason.TOO_MANY_WORDS, characters.words() > config.max_words
    if config.min_letter_fraction is not None:
        yield Reason.TOO_FEW_LETTERS, characters.letter_fractions() < config.min_letter_fraction
    if config.max_repeated_chars is not None:
        yield Reason.REPEATED_CHARACTERS, characters.longest_runs() > config.max_repeated_chars


def _matches(captions: pa.StringArray, pattern: str) -> np.ndarray:
    return np.array(pc.match_substring_regex(captions, pattern).to_numpy(zero_copy_only=False), bool)


def _counts(texts: pa.StringArray, part: str) -> np.ndarray:
    return np.asarray(pc.count_substring(texts, part).to_numpy(zero_copy_only=False))
