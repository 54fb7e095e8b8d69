"""Source 3: titles of Wikipedia articles, ranked by page views ("above a certain search volume").

Redirects, disambiguation pages, lists and everything outside the article namespace are excluded. A dump tells them
apart; without one, only the title itself can.
"""

import re

import pyarrow as pa
import pyarrow.compute as pc

from queries.list_files import CANDIDATES
from queries.wikipedia.dump import Page

ORIGIN = "title"

# Disambiguation pages carry a template, with a different name in each language; these are the largest Wikipedias'.
# "{{disambiguation needed}}" marks links in articles.
_DISAMBIGUATION = re.compile(
    r"""dab | hndis | geodis | schooldis | hospitaldis | numberdis | roaddis | mathdab
        | begriffsklärung | homonymie | desambiguaci[oó]n | desambiguação | disambigua | dp | ujednoznacznienie
        | неоднозначность | багатозначність | grensida? | förgrening
        | 曖昧さ回避 | aimai | 消歧义 | 消歧義 | 동음이의 | توضيح | ابهام‌زدایی | פירושונים | trang\ định\ hướng
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DISAMBIGUATION_NEEDED = re.compile(r"disambiguation (?:link )?needed", re.IGNORECASE)
_MAGIC_WORD = re.compile("__DISAMBIG__", re.IGNORECASE)
_TEMPLATE_NAME = re.compile(r"\{\{\s*+([^{}|\n]*+)\s*+[|}]")
_LIST = re.compile(
    r"(?:Lists? of|Outline of|Index of|Liste d|Lista d|Elenco d|Lijst van|Lista över|Список|Daftar )",
    re.IGNORECASE,
)
_QUALIFIER = re.compile(r" \([^()]*\)$")
_DISAMBIGUATION_TITLE = re.compile(
    r"\((?:disambiguation|Begriffsklärung|homonymie|desambiguación|doorverwijspagina)\)$"
)


def exclusion_reason(page: Page) -> str | None:
    """Return why a page title is excluded, or None."""
    if page.namespace != 0:
        return "namespace"
    if page.is_redirect:
        return "redirect"
    if _is_disambiguation(page.markup) or _DISAMBIGUATION_TITLE.search(page.title):
        return "disambiguation"
    return "list" if _LIST.match(page.title) else None


def _is_disambiguation(markup: str) -> bool:
    names = (match[1].strip() for match in _TEMPLATE_NAME.finditer(markup))
    return _MAGIC_WORD.search(markup) is not None or any(_marks_disambiguation(name) for name in names)


def _marks_disambiguation(name: str) -> bool:
    if "disambig" in name.lower():
        return _DISAMBIGUATION_NEEDED.match(name) is None
    return _DISAMBIGUATION.fullmatch(name) is not None


def keep_articles(views: pa.Table, articles: pa.Array | None) -> pa.Table:
    """Return VIEWS of articles only, their titles spelled with spaces.

    `articles` are the titles of a dump's articles; None without a dump.
    """
    views = views.set_column(0, "title", pc.replace_substring(views["title"], "_", " "))
    if articles is not None:
        return views.filter(pc.is_in(views["title"], articles))
    allowed = [_looks_like_an_article(title) for title in views["title"].to_pylist()]
    return views.filter(pa.array(allowed, pa.bool_()))


def _looks_like_an_article(title: str) -> bool:
    return ":" not in title and not _LIST.match(title) and not _DISAMBIGUATION_TITLE.search(title)


def rank_titles(views: pa.Table, min_views: int = 1) -> pa.Table:
    """Return VIEWS with at least `min_views`, most viewed first."""
    viewed = views.filter(pc.greater_equal(views["views"], min_views))
    return viewed.sort_by([("views", "descending"), ("title", "ascending")])


def title_queries(views: pa.Table, min_views: int = 1) -> pa.Table:
    """Return titles with at least `min_views` views as CANDIDATES, best first; the score is the sum of the views.

    `views` are VIEWS of articles, each title once. A qualifier at the end is dropped: "Mercury (planet)" becomes
    "Mercury".
    """
    ranked = rank_titles(views, min_views)
    queries = pc.replace_substring_regex(ranked["title"], _QUALIFIER.pattern, "")
    columns = [queries, pa.repeat(ORIGIN, ranked.num_rows), ranked["views"].cast(pa.float64())]
    return pa.table(columns, schema=CANDIDATES)
