"""The one text normaliser: query lists and captions both go through it, so that equal texts compare as equal bytes.

The normal form of a text is its tokens, joined by single spaces. A query matches a caption when its tokens occur in the
caption in a row (`queries.match`). Steps, in this order:

1. Invisible characters are removed: zero-width joiners, soft hyphens, direction marks, variation selectors.
2. Unicode NFKC and full case folding (Unicode 3.13): full-width letters, ligatures, "ß", final sigma.
3. Letters, digits and their combining marks form words. Punctuation, white space and control characters only separate.
4. A symbol (emoji, currency, "+", "#", "&", "%") is a token of its own, so that "C++" stays apart from "C".
5. So is every letter, with its marks, of the scripts written without spaces between words: Han, kana, Bopomofo, Thai,
   Lao, Khmer, Burmese. A query in these scripts therefore matches inside a longer run of letters.

    >>> normalize("(Dog's) dog-house, U.S.A.")
    'dog s dog house u s a'
    >>> normalize("C++ & Ac/Dc, STRAẞE")
    'c + + & ac dc strasse'
    >>> normalize("Ｔｏｋｙｏ東京タワー")
    'tokyo 東 京 タ ワ ー'

Diacritics are kept: "naïve" is not "naive". Nothing is stemmed. docs/queries.md has the table of cases.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Characters = TypeVar("Characters", npt.NDArray[np.uint8], npt.NDArray[np.uint32])

_SEPARATOR, _WORD, _ALONE, _MARK, _IGNORED, _END_OF_ROW = range(6)

# Blocks of the scripts that put no spaces between words. Hangul is not one of them: Korean does.
_UNSPACED_BLOCKS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese; its extensions are 0xA9E0 and 0xAA60
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # iteration mark, closing mark, zero
    (0x3021, 0x303C),  # Hangzhou numerals, kana repeat marks
    (0x3040, 0x31FF),  # kana, Bopomofo (and Hangul compatibility letters, which NFKC replaces)
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0x1AFF0, 0x1B16F),  # kana
    (0x20000, 0x323AF),  # Han
)

# Default_Ignorable_Code_Point (Unicode DerivedCoreProperties) that are not of category Cf already.
_IGNORABLE_NOT_CF = (
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
    *range(0xFE00, 0xFE10),
)

_ZERO_WIDTH_SPACE = "\u200b"  # Cf, but it marks a word boundary
_TOKEN_PUNCTUATION = "#&%"
# Symbols that decorate a name ("Lego® City") or act as punctuation; NFKC turns the slash in "½" into U+2044.
_SEPARATING_SYMBOLS = "©®™℠<=>|~^`\u2044\ufffd"


_CLASS_OF_CATEGORY = {
    **dict.fromkeys(("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No"), _WORD),
    **dict.fromkeys(("Mn", "Mc"), _MARK),
    # Unassigned counts as a symbol: most additions to Unicode are symbols, and Python versions then agree on them.
    **dict.fromkeys(("Sc", "Sm", "So", "Cn"), _ALONE),
    **dict.fromkeys(("Cf", "Me"), _IGNORED),
    **dict.fromkeys(("Cc", "Co", "Cs", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "Sk", "Zl", "Zp", "Zs"), _SEPARATOR),
}


def _class_table() -> npt.NDArray[np.uint8]:
    """Return the class of every code point."""
    category = unicodedata.category
    table = np.array([_CLASS_OF_CATEGORY[category(chr(c))] for c in range(0x32400)], dtype=np.uint8)
    table = np.pad(table, (0, sys.maxunicode + 1 - len(table)), constant_values=_ALONE)  # unassigned planes
    table[0xE0000:0xE1000] = _IGNORED  # tags, variation selectors
    table[0xF0000:] = _SEPARATOR  # private use
    for first, last in _UNSPACED_BLOCKS:
        is_letter = [category(chr(c))[0] in "LN" and category(chr(c)) != "Nd" for c in range(first, last + 1)]
        table[first : last + 1][is_letter] = _ALONE
    table[list(_IGNORABLE_NOT_CF)] = _IGNORED
    table[[ord(c) for c in _SEPARATING_SYMBOLS + _ZERO_WIDTH_SPACE]] = _SEPARATOR
    table[[ord(c) for c in _TOKEN_PUNCTUATION]] = _ALONE
    return table


_CLASS = _class_table()


def _character_set(*classes: int) -> str:
    """Return the inside of a regular expression's [...] that holds exactly the characters of these classes."""
    inside = np.concatenate(([False], np.isin(_CLASS, classes), [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2)
    return "".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in edges)


_IGNORED_RUN = re.compile(f"[{_character_set(_IGNORED)}]+")
# NFKC would join these to the word before: "Lego™" must not become "legotm", nor "5½" "51/2".
_JOINED_BY_NFKC = re.compile("[™℠]|(?=[¼½¾⅐-⅟↉])")
# "İ" folds to "i" and a combining dot above, which is not written outside Turkish ("Istanbul").
_DOTTED_I = re.compile("i\u0307+")
_TOKEN = re.compile(
    f"[{_character_set(_ALONE)}][{_character_set(_MARK)}]*|[{_character_set(_WORD)}][{_character_set(_WORD, _MARK)}]*"
)


def normalize(text: str) -> str:
    """Return the normal form of a text: its tokens, separated by single spaces; empty when it has none."""
    return " ".join(_TOKEN.findall(_fold(text)))


def _fold(text: str) -> str:
    """Apply NFKC and case folding, after removing the characters that must not take part in composition."""
    text = _JOINED_BY_NFKC.sub(" ", _IGNORED_RUN.sub("", text))
    folded = unicodedata.normalize("NFKC", text).casefold()
    if "i\u0307" in folded:
        folded = _DOTTED_I.sub("i", folded)
    return unicodedata.normalize("NFKC", folded)


def as_strings(texts: Iterable[str | None] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return texts as one Arrow array of strings: lists, NumPy arrays, Arrow arrays and columns of any string type."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
        texts = texts if isinstance(texts, pa.Array) else pa.concat_arrays(texts.chunks)
    if not isinstance(texts, pa.Array):
        texts = pa.array(texts if isinstance(texts, Sequence | np.ndarray) else list(texts), pa.string())
    return texts if texts.type == pa.string() else texts.cast(pa.string())


def normalize_batch(texts: pa.Array) -> pa.Array:
    """Return `normalize` of every text of a string array; nulls stay null.

    All rows are processed together as one long text: ASCII rows as bytes, the rest as code points.
    """
    rows = pc.fill_null(texts.cast(pa.large_string()), "")
    is_ascii = pc.string_is_ascii(rows).to_numpy(zero_copy_only=False)
    if is_ascii.all():
        normal = _normalize_ascii(rows)
    else:
        other = _normalize_unicode(rows.filter(pa.array(~is_ascii)))
        both = pa.concat_arrays([_normalize_ascii(rows.filter(pa.array(is_ascii))), other])
        normal = both.take(pa.array(np.argsort(np.argsort(~is_ascii, kind="stable"), kind="stable")))
    normal = normal.cast(pa.string())
    return pc.if_else(texts.is_valid(), normal, None) if texts.null_count else normal


_NEWLINE = ord("\n")
_SPACE = ord(" ")
_ASCII_FOLD = bytes(_NEWLINE if c == _NEWLINE else ord(chr(c).lower()) for c in range(128)) + bytes(128)
_CLASS_IN_ROWS = _CLASS.copy()
_CLASS_IN_ROWS[_NEWLINE] = _END_OF_ROW


def _normalize_ascii(rows: pa.Array) -> pa.Array:
    folded = _terminated(rows).translate(_ASCII_FOLD)
    return _split_rows(_separate_tokens(np.frombuffer(folded, dtype=np.uint8)))


def _normalize_unicode(rows: pa.Array) -> pa.Array:
    folded = _fold(_terminated(rows).decode())
    code_points = _separate_tokens(np.frombuffer(folded.encode("utf-32-le"), dtype=np.uint32))
    return _split_rows(np.frombuffer(code_points.tobytes().decode("utf-32-le").encode(), dtype=np.uint8))


def _terminated(rows: pa.Array) -> bytes:
    """Return the rows as one text in which each row ends with a newline; newlines inside rows become spaces."""
    if pc.any(pc.match_substring(rows, "\n")).as_py():
        rows = pc.replace_substring(rows, "\n", " ")
    nothing, newline = pa.scalar("", pa.large_string()), pa.scalar("\n", pa.large_string())
    return values_buffer(pc.binary_join_element_wise(rows, nothing, newline))


def values_buffer(rows: pa.Array) -> bytes:
    """Return the concatenated UTF-8 text of all rows of a large_string array."""
    _, offsets, values = rows.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)
    if values is None:
        return b""
    return cast(bytes, values[int(bounds[rows.offset]) : int(bounds[rows.offset + len(rows)])].to_pybytes())


def _split_rows(text: npt.NDArray[np.uint8]) -> pa.Array:
    """Return the rows of a text in which a newline ends each, as large_string."""
    ends = np.flatnonzero(text == _NEWLINE)
    offsets = np.concatenate(([0], ends - np.arange(len(ends)))).astype(np.int64)
    values = text[text != _NEWLINE].tobytes()
    return pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets.tobytes()), pa.py_buffer(values))


def _separate_tokens(text: Characters) -> Characters:
    """Return the normal forms of folded rows, as code points or bytes: what `_TOKEN` finds, for all rows at once."""
    classes = _CLASS_IN_ROWS[text]
    is_mark = classes == _MARK
    if is_mark.any():
        classes = _with_class_of_base(classes, is_mark)
    is_word = classes == _WORD
    is_alone = classes == _ALONE
    ends_row = classes == _END_OF_ROW
    starts_token = is_alone & ~is_mark
    starts_token |= is_word & ~_shifted(is_word, False)

    kept = np.flatnonzero(is_word | is_alone | ends_row)
    needs_space = starts_token[kept] & ~_shifted(ends_row[kept], True)
    return np.insert(text[kept], np.flatnonzero(needs_space), _SPACE)


def _with_class_of_base(classes: npt.NDArray[np.uint8], is_mark: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Give each mark the class of its base character; a mark without a base becomes a separator."""
    base = np.where(is_mark, 0, np.arange(len(classes)))
    of_base = classes[np.maximum.accumulate(base)]
    of_base[is_mark & (of_base != _WORD) & (of_base != _ALONE)] = _SEPARATOR
    return of_base


def _shifted(flags: npt.NDArray[np.bool_], first: bool) -> npt.NDArray[np.bool_]:
    """Return, for each position, the flag of the position before it."""
    return np.concatenate(([first], flags[:-1]))


def is_word(token: str) -> bool:
    """Return whether a token is a word, not a symbol or a letter of a script without spaces."""
    return bool(token) and bool(_CLASS[ord(token[0])] == _WORD)
