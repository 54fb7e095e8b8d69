import pyarrow as pa
import pytest

from queries.list_files import CANDIDATES
from queries.origins.titles import exclusion_reason, keep_articles, title_queries
from queries.wikipedia.dump import Page
from queries.wikipedia.page_views import VIEWS


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page("Dog", 0, False, "A [[dog]] {{disambiguation needed|date=May}} {{Infobox dog}}"), None),
        (Page("Listeria", 0, False, ""), None),
        (Page("Star Wars: Episode IV", 0, False, ""), None),
        (Page("File:Dog.jpg", 6, False, ""), "namespace"),
        (Page("Doggo", 0, True, "#REDIRECT [[Dog]]"), "redirect"),
        (Page("Mercury", 0, False, "* [[Mercury (planet)]]\n{{disambiguation|geo}}"), "disambiguation"),
        (Page("Mercury", 0, False, "{{ Disambig }}"), "disambiguation"),
        (Page("Smith", 0, False, "{{hndis|Smith}}"), "disambiguation"),
        (Page("Merkur", 0, False, "{{Begriffsklärung}}"), "disambiguation"),
        (Page("Mercury (disambiguation)", 0, False, ""), "disambiguation"),
        (Page("List of dogs", 0, False, ""), "list"),
        (Page("Liste der Hunde", 0, False, ""), "list"),
    ],
)
def test_only_articles_give_titles(page: Page, reason: str | None) -> None:
    assert exclusion_reason(page) == reason


def views(**counts: int) -> pa.Table:
    return pa.table([list(counts), list(counts.values())], schema=VIEWS)


def test_titles_are_ranked_by_views_and_lose_their_qualifier() -> None:
    seen = views(**{"Ice_cream": 5, "Dog": 9, "Mercury_(planet)": 7, "A": 5, "Rare": 1, "Unknown": 99})
    articles = pa.array(["Ice cream", "Dog", "Mercury (planet)", "A", "Rare", "Unseen"])
    found = title_queries(keep_articles(seen, articles), min_views=2)
    assert found.schema == CANDIDATES
    assert found.to_pylist() == [
        {"query": query, "origin": "title", "score": score}
        for query, score in [("Dog", 9), ("Mercury", 7), ("A", 5), ("Ice cream", 5)]
    ]


def test_without_a_dump_the_title_itself_must_do() -> None:
    seen = views(
        **{"Dog": 4, "Special:Search": 9, "List_of_dogs": 3, "Mercury_(disambiguation)": 2, "Mercury_(planet)": 1}
    )
    assert title_queries(keep_articles(seen, None))["query"].to_pylist() == ["Dog", "Mercury"]


def test_no_views_give_no_titles() -> None:
    for articles in (None, pa.array(["Dog"])):
        assert title_queries(keep_articles(VIEWS.empty_table(), articles)).num_rows == 0


@pytest.mark.parametrize("markup", ["{{" + " " * 2_000_000, "{{" + "disambig " * 200_000, "{{a" * 600_000])
def test_markup_that_names_no_template_is_read_once(markup: str) -> None:
    assert exclusion_reason(Page("Dog", 0, False, markup)) is None
