"""Source 4: WordNet's synsets, from the standard `dict` folder (Debian: /usr/share/wordnet; NLTK: corpora/wordnet).

A synset is named after its first lemma ("dog" for dog.n.01); the names of WordNet 3.0's 117,659 synsets are 86,571
distinct words and phrases, ignoring case. The other lemmas are synonyms: another 60,735.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from queries.errors import InputError
from queries.list_files import CANDIDATES

ORIGIN = "wordnet"
_PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")


def wordnet_queries(folder: str, *, synonyms: bool = False) -> pa.Table:
    """Return the names of all synsets as CANDIDATES, best first; with `synonyms`, all their lemmas.

    The score of a word is the number of its senses: the synsets of any part of speech that have it as a lemma.

    Raises:
        InputError: a file of the folder is missing or is not a WordNet file.
    """
    senses: dict[str, int] = {}
    names: dict[str, str] = {}  # lower case -> as the synset spells it
    for part in _PARTS_OF_SPEECH:
        for lemma, synsets in _index(Path(folder) / f"index.{part}"):
            senses[lemma] = senses.get(lemma, 0) + synsets
        for lemmas in _synsets(Path(folder) / f"data.{part}"):
            for lemma in lemmas if synonyms else lemmas[:1]:
                names.setdefault(lemma.lower(), lemma)
    ranked = sorted(names.items(), key=lambda item: (-senses.get(item[0], 1), item[0]))
    columns = [
        pa.array([name.replace("_", " ") for _, name in ranked], pa.string()),
        pa.repeat(ORIGIN, len(ranked)),
        pa.array([float(senses.get(key, 1)) for key, _ in ranked], pa.float64()),
    ]
    return pa.table(columns, schema=CANDIDATES)


def _index(path: Path) -> Iterator[tuple[str, int]]:
    """Read lines like "dog n 7 5 @ ~ ...", lemma and number of synsets (wndb(5WN), index file format)."""
    for number, fields in _lines(path):
        if len(fields) < 4 or not fields[2].isdecimal() or len(fields[2]) > 4:
            raise InputError(f"{path}: line {number} is not a line of a WordNet index")
        yield fields[0], int(fields[2])


def _synsets(path: Path) -> Iterator[list[str]]:
    """Read lines like "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 ...", the lemmas of a synset."""
    for number, fields in _lines(path):
        lemmas = fields[4 : 4 + 2 * int(fields[3], 16) : 2] if _looks_like_a_synset(fields) else []
        if not lemmas:
            raise InputError(f"{path}: line {number} is not a WordNet synset")
        yield [_MARKER.sub("", lemma) for lemma in lemmas]


def _looks_like_a_synset(fields: list[str]) -> bool:
    return len(fields) > 5 and fields[0].isdecimal() and re.fullmatch("[0-9a-f]{2}", fields[3]) is not None


_MARKER = re.compile(r"\((?:a|p|ip)\)$")  # the syntactic position of an adjective: "out(p)"


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Read the fields of each line, with its number; the licence at the top is indented."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.startswith("  "):
                    yield number, line.split()
    except (FileNotFoundError, NotADirectoryError):
        problem = f"it has no {path.name}" if path.parent.is_dir() else "the folder does not exist"
        raise InputError(
            f"{path.parent}: not a WordNet folder: {problem}; it needs index.* and data.* "
            "(Debian: package wordnet-base, /usr/share/wordnet)"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a WordNet file (it is not text)") from None
