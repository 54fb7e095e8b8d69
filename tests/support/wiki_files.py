"""Small dumps, page-view files and WordNet folders, written as the real ones are."""

import bz2
from collections.abc import Sequence
from html import escape
from pathlib import Path

HEADER = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="xx">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>xxwiki</dbname>
    <base>https://xx.wikipedia.org/wiki/Main_Page</base>
    <namespaces>
      <namespace key="-1" case="first-letter">Special</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Dosiero</namespace>
      <namespace key="14" case="first-letter">Category</namespace>
    </namespaces>
  </siteinfo>
"""


def page(title: str, markup: str = "", *, namespace: int = 0, redirect: bool = False, model: str = "wikitext") -> str:
    """Return the XML of one page."""
    return f"""  <page>
    <title>{escape(title)}</title>
    <ns>{namespace}</ns>
    <id>1</id>{'<redirect title="x" />' if redirect else ""}
    <revision>
      <id>2</id>
      <contributor><username>text</username></contributor>
      <model>{model}</model>
      <text xml:space="preserve">{escape(markup)}</text>
    </revision>
  </page>
"""


def dump_xml(pages: Sequence[str], header: str = HEADER) -> bytes:
    return f"{header}{''.join(pages)}</mediawiki>\n".encode()


def multistream(pages: Sequence[str], pages_per_stream: int = 2, header: str = HEADER) -> bytes:
    """Return a dump as the -multistream files are: the header, groups of pages, the end, each a bz2 stream."""
    groups = ["".join(pages[i : i + pages_per_stream]) for i in range(0, len(pages), pages_per_stream)]
    return b"".join(bz2.compress(text.encode()) for text in (header, *groups, "</mediawiki>\n"))


def wordnet_folder(folder: Path, synsets: dict[str, list[str]]) -> Path:
    """Write a `dict` folder; `synsets` gives, for each part of speech, the lemmas of each synset as "a b c"."""
    folder.mkdir(exist_ok=True)
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        licence = "  1 This software and database is being provided to you  \n"
        rows, senses = [licence], {}
        for number, lemmas in enumerate(synsets.get(part, [])):
            words = lemmas.split()
            rows.append(
                f"{number:08d} 03 {letter} {len(words):02x} {' '.join(f'{w} 0' for w in words)} 000 | a gloss  \n"
            )
            for word in words:
                senses.setdefault(word.lower(), []).append(f"{number:08d}")
        (folder / f"data.{part}").write_text("".join(rows))
        index = [f"{w} {letter} {len(o)} 0 {len(o)} 0 {' '.join(o)}  \n" for w, o in sorted(senses.items())]
        (folder / f"index.{part}").write_text("".join([licence, *index]))
    return folder
