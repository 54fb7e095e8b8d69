import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.normal_form import normalize
from queries.wikipedia.markup_cost import is_too_slow
from queries.wikipedia.wikitext import plain_text

NAMESPACES = frozenset({"file", "file talk", "image", "category", "fails"})


@pytest.mark.parametrize(
    ("markup", "words"),
    [
        ("''A'' '''dog''' barks", "a dog barks"),
        ("an ''anarchist''s", "an anarchists"),
        ("L'''amour'' of art", "l amour of art"),
        ("of d'''Artagnan'' rode", "of d artagnan rode"),
        ("the dogs''''bone''' x", "the dogs bone x"),
        ("'''L'''''amour'' fou", "lamour fou"),  # bold, then both: nothing is odd
        ("a ''b'' '''c''' d", "a b c d"),
        ("''one line\nl'''other", "one line lother"),  # each line has its own quotes
        ("__NOTOC__ dog __FORCETOC__ a__b", "dog a b"),
        ("dog<ref\nname=a>hidden</ref> cat", "dog cat"),
        ("<includeonly>hidden</includeonly>dog", "dog"),
        ("[[File_talk:x.jpg|thumb]] runs", "runs"),
        ("[[Dog]]s and [[Felis catus|cats]]", "dogs and cats"),
        ("[[Star Wars: Episode IV]]", "star wars episode iv"),
        ("[[Dune: Part Two|the film]]", "the film"),
        ("[[File:Dog.jpg|thumb|A [[dog]]]] runs", "runs"),
        ("[[ fails :Suns.jpg|thumb]] runs", "runs"),
        ("x [[Category:Dogs]] [[fr:Chien]] [[zh-min-nan:Kau]] y", "x y"),
        ("see [[:Category:Dogs|all dogs]]", "see all dogs"),
        ("[https://dog.example The dogs] https://x.example [https://y.example]", "the dogs"),
        ("Dog<ref name='a'>[[Smith]] 2001</ref> and cat<ref name=a />.", "dog and cat"),
        ("{{Infobox|name={{nested}}|x}}dog{{{arg|default}}}", "dog"),
        ("before\n{| class=wikitable\n! head\n|-\n| cell [[link]]\n|}\nafter", "before after"),
        ("a <!-- hidden --> b", "a b"),
        ("x<br>y<br/>z", "x y z"),
        ("<b class='c'>bold</b> <nowiki>[[raw]]</nowiki> <math>x^2</math>", "bold raw"),
        ("<div class=x>in [[side]]</div>", "in side"),
        ("== Head ==\n* one\n* two\n; t : d", "head one two t d"),
        ("&amp;dog&nbsp;house &#233; &#xe9; &ndash;", "& dog house é é"),
        ("{{broken [[dog", "broken dog"),
        ("a <!-- b --> c <!-- d [[e]]\n{{f", "a c"),
        (
            "the &lt;blink&gt; tag, &lt;ref&gt;shown&lt;/ref&gt;, 1 &lt; 2 &#60;b&#x3c;i",
            "the blink tag ref shown ref 1 2 b i",
        ),
        ("<tr><td>Riga<td class=x>''Rīga'' 1 < 2 and 3 > 2</small>", "riga rīga 1 2 and 3 2"),
        ("", ""),
    ],
)
def test_what_a_reader_sees_is_left(markup: str, words: str) -> None:
    assert normalize(plain_text(markup, NAMESPACES)) == words


def test_paragraphs_headings_and_items_are_lines() -> None:
    lines = plain_text("One.\n\nTwo.\n== H ==\n* a\n* b<br>c", frozenset()).split("\n")
    assert [normalize(line) for line in lines if normalize(line)] == ["one", "two", "h", "a", "b", "c"]


PIECES = [
    "[[",
    "]]",
    "{{",
    "}}",
    "{|",
    "|}",
    "<ref>",
    "</ref>",
    "<b",
    ">",
    "</b>",
    "&#",
    ";",
    "<!--",
    "-->",
    "[http://a ",
]
MARKUP = st.lists(st.sampled_from([*PIECES, *"ab:|='\n *!-="]), max_size=25).map("".join)


@given(MARKUP)
def test_any_markup_gives_text(markup: str) -> None:
    assert isinstance(plain_text(markup, NAMESPACES), str)


@given(st.lists(st.sampled_from([*"ab:|='\n *!-=", "[http://a ", "<b>", "&amp;", "-->"]), max_size=25).map("".join))
def test_whatever_a_template_holds_is_left_out(markup: str) -> None:
    assert plain_text(f"dog{{{{t|{markup}}}}}house", NAMESPACES) == "doghouse"


UNCLOSED = [
    "[http://a ",
    "<ref>",
    "<br ",
    "</br ",
    "<b",
    '<a b="',
    "<math>",
    "[[a|",
    "{{a|",
    "\n{|a",
    "a[//b [[<i>",
]


@pytest.mark.parametrize("mark", UNCLOSED)
def test_marks_that_nothing_closes_are_refused_before_they_take_hours(mark: str) -> None:
    with pytest.raises(ValueError, match="too long"):
        plain_text(mark * (2_000_000 // len(mark)), NAMESPACES)


@pytest.mark.parametrize("mark", UNCLOSED)
def test_a_few_of_them_are_text(mark: str) -> None:
    assert plain_text("dog\n" + mark * 20, NAMESPACES).startswith("dog")


@pytest.mark.parametrize(
    "closed", ["[http://a b]", "<ref>a</ref>", "<br>", "[[a|b]]", "{{a|{{{b|}}}}}", "<li>", "<!--a-->"]
)
def test_marks_that_close_are_read_however_many(closed: str) -> None:
    assert not is_too_slow((closed + "\n") * (400_000 // len(closed)))


def test_a_line_of_equals_signs_is_text() -> None:
    assert normalize(plain_text("=" + "a=" * 500_000, NAMESPACES)).startswith("a a")


def test_a_page_of_hundreds_of_megabytes_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        plain_text("dog house " * 2_000_000, NAMESPACES)
