"""The images of a page and their texts, against the HTML standard, browsers' habits, and a DOM parser as an oracle."""

import re
import tarfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from resiliparse.parse.html import DOMNode, HTMLTree, NodeType

from pipeline.sources.html import extract_images, largest_source


def images(html: str) -> list[tuple[str, dict[str, str]]]:
    """Return (address, texts) of each image."""
    return [(url, dict(texts)) for url, texts in extract_images(html).images]


def address(attributes: str) -> str:
    (image,) = extract_images(f"<p><img {attributes}>").images
    return image.url


def test_every_text_of_an_image_is_kept_with_its_field():
    page = '<figure><img src=a.jpg alt="An alt" title="A title"><figcaption>A <b>cap</b>tion</figcaption></figure>'
    assert images(page) == [("a.jpg", {"alt": "An alt", "title": "A title", "figcaption": "A caption"})]


def test_an_image_without_a_text_is_still_an_image():
    assert images('<img src=a.jpg alt="" title><img>') == [("a.jpg", {}), ("", {})]


def test_references_in_attributes_follow_the_standard():
    page = '<img src="a.jpg?x=1&amp;y=2&copy=3" alt="AT&T &amp; caf&eacute; &#x1F600; &#xD800; &lt">'
    assert images(page) == [("a.jpg?x=1&y=2&copy=3", {"alt": "AT&T & café 😀 \ufffd <"})]


@pytest.mark.parametrize(
    "page",
    [
        "<!-- <img src=x> --><script>'<img src=x>'</script><style><img src=x></style>",
        "<textarea><img src=x></textarea><title><img src=x></title><iframe><img src=x></iframe>",
        "<script><!-- <script> <img src=x> </script> <img src=x> --></script>",
        "<template><img src=x></template><img src='unclosed>",
    ],
)
def test_what_only_looks_like_an_image(page):
    assert images(page + "<img src=y>" * ("unclosed" not in page))[:1] == [("y", {})] * ("unclosed" not in page)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("src=a.jpg data-src=b.jpg", "a.jpg"),  # a real src needs no help
        ("data-src=b.jpg", "b.jpg"),
        ("src='' data-lazy-src=b.jpg", "b.jpg"),
        ("src='data:image/gif;base64,R0lGOD' data-original=b.jpg", "b.jpg"),
        ("src=/img/blank.gif data-src=b.jpg", "b.jpg"),
        ("src=/img/1x1.png?v=2 data-srcset='s.jpg 320w, b.jpg 640w'", "b.jpg"),
        ("src=spacer.gif srcset='s.jpg 1x, b.jpg 2x'", "b.jpg"),
        ("src=lazy.png data-src='{\"default\": \"c.jpg\"}' srcset='b.jpg'", "b.jpg"),
        ("src=spacer.gif", "spacer.gif"),  # nothing better
        ("src='data:image/gif;base64,R0lGOD'", "data:image/gif;base64,R0lGOD"),
        ("alt=x", ""),
    ],
)
def test_the_address_behind_a_placeholder(attributes, expected):
    assert address(attributes) == expected


def test_sources_of_a_picture_stand_in_for_a_placeholder():
    page = (
        "<picture><source srcset='a.webp 400w, b.webp 800w' type=image/webp><source data-srcset='c.jpg 600w'>"
        "<img src='data:,' alt=x></picture><img src='data:,' alt=y>"
    )
    assert images(page) == [("b.webp", {"alt": "x"}), ("data:,", {"alt": "y"})]


def test_sources_outside_a_picture_are_those_of_films_and_sounds():
    page = "<video><source srcset=a.jpg></video><img src='data:,'><picture><source srcset=b.jpg><img></picture><img>"
    assert [url for url, _ in images(page)] == ["data:,", "b.jpg", ""]


def test_what_images_share_is_worked_on_once():
    """A caption or a picture's sources shared by n images must not cost n times their length."""
    many, long = 20_000, "word " * 200_000
    figure = extract_images(f"<figure>{'<img src=a>' * many}<figcaption>{long}</figcaption></figure>")
    assert len({id(image.texts[0][1]) for image in figure.images}) == 1
    picture = extract_images(f"<picture>{'<source srcset=a.jpg>' * many}{'<img>' * many}</picture>")
    assert [image.url for image in picture.images[:2]] == ["a.jpg", ""]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ([""], None),
        ([" , ,, "], None),
        (["a.jpg"], "a.jpg"),
        (["a.jpg, b.jpg 2x,c.jpg 1.5x"], "b.jpg"),
        (["a,b.jpg 1x, c,d.jpg 3x"], "c,d.jpg"),  # commas belong to an address until white space
        (["a.jpg 100w 50h, b.jpg 200w"], "b.jpg"),
        (["a.jpg (x, y) 300w, b.jpg 200w"], "a.jpg"),
        (["data:image/png;base64,AA 9x, b.jpg 1x"], "b.jpg"),
        (["a.jpg nonsensew, b.jpg 1w"], "b.jpg"),
        (["a.jpg 1x", "b.jpg 640w"], "b.jpg"),
        (["a.jpg nanw, b.jpg infx"], "b.jpg"),
    ],
)
def test_largest_source(sets, expected):
    assert largest_source(sets) == expected


@given(st.text(alphabet="a,. ()\t2wx", max_size=40))
def test_largest_source_is_a_word_of_the_set(source_set: str):
    found = largest_source([source_set])
    assert found is None or (found in source_set and re.search(r"\s|^,|,$", found) is None)
    assert (found is None) == (not source_set.strip(" ,\t"))


def test_noscript_repeats_nothing_and_adds_what_no_script_shows():
    page = (
        "<img data-src=a.jpg alt=A><noscript><img src=a.jpg alt=A></noscript><noscript><img src=b.jpg alt=B></noscript>"
    )
    assert images(page) == [("a.jpg", {"alt": "A"}), ("b.jpg", {"alt": "B"})]


def test_noscript_says_what_the_image_itself_does_not():
    page = "<img data-src=a.jpg title=T><noscript><img src=a.jpg alt=A title=T></noscript>"
    assert images(page) == [("a.jpg", {"title": "T"}), ("a.jpg", {"alt": "A"})]
    after = "<noscript><img src=a.jpg alt=A></noscript><img src=a.jpg>"
    assert images(after) == [("a.jpg", {"alt": "A"}), ("a.jpg", {})]


def test_the_first_base_counts():
    assert extract_images("<base target=x><base href=/a/><base href=/b/><img src=x>").base == "/a/"
    assert extract_images("<img src=x>").base is None


@pytest.mark.parametrize(
    ("figure", "captions"),
    [
        ("<figure><figcaption>C</figcaption><img src=1></figure>", ["C"]),
        ("<figure><img src=1><img src=2><figcaption>C</figcaption></figure>", ["C", "C"]),
        ("<figure><img src=1><figcaption>one<br>two<p>three</p>fo<em>ur</em></figcaption>", ["one two three four"]),
        ("<figure><img src=1><figcaption>C<script>x</script><style>y</style></figcaption></figure>", ["C"]),
        ("<figure><figure><img src=1><figcaption>in</figcaption></figure><img src=2><figcaption>out", ["in", "out"]),
        ("<figure><img src=1></figure><figcaption>stray</figcaption><img src=2>", [None, None]),
        ("<figure><img src=1><figcaption>never closed", ["never closed"]),
        ("<figure><img src=1><figcaption>  </figcaption></figure>", [None]),
    ],
)
def test_figure_captions(figure, captions):
    assert [texts.get("figcaption") for _, texts in images(figure)] == captions


def test_a_page_whose_nesting_costs_too_much_is_read_up_to_there():
    page = extract_images("<img src=a>" + "<div>" * 100_000 + "</p>" * 100_000 + "<img src=b>")
    assert [image.url for image in page.images] == ["a"]
    assert not page.is_complete


@pytest.mark.parametrize("tag", ["wbr", "dd", "font", "div", "source", "li"])
def test_elements_left_open_are_no_harm(tag):
    page = extract_images(f"<p>{f'<{tag}>x' * 3_000}<img src=a>{'<b>x</b>' * 3_000}")
    assert [image.url for image in page.images] == ["a"]
    assert page.is_complete


def test_markup_that_multiplies_in_a_tree_stays_small():
    """A tree builder reopens each of these elements in every paragraph: a million nodes from 30 kB."""
    page = extract_images("<p>" + "".join(f"<font a={n}>" for n in range(400)) + "<p>x" * 5_000 + "<img src=a>")
    assert page.is_complete
    assert [image.url for image in page.images] == ["a"]


@given(st.text())
def test_any_text_is_a_page(html: str):
    for page in (html, f"<img {html}>", f"<figure><img alt='{html}'><figcaption>{html}", f"<img srcset='{html}'>"):
        extract_images(page)


# The same tags in a DOM. Tags that move content about in a tree (table, select, svg) are left to the real pages.
TAGS = ("p", "div", "a", "b", "ul", "li", "span", "section", "article", "h1", "picture", "noscript", "br", "/p", "/div")
TAGS += (
    "/a",
    "/b",
    "/ul",
    "/span",
    "/section",
    "/h1",
    "/picture",
    "p class=x",
    "a href='<img src=no>'",
    "/xyz",
    "!-- --",
)
ATTRIBUTES = st.sampled_from(["src", "alt", "title", "SRC", "data-x", "/", '"', "class"])
VALUES = st.text(alphabet="ab &;<>'=/#x1é\n\t", max_size=8)
IMAGES = st.lists(st.tuples(ATTRIBUTES, VALUES), max_size=4).map(
    lambda pairs: "<img " + " ".join(f'{name}="{value}"' for name, value in pairs) + ">"
)
SOUP = st.lists(IMAGES | st.sampled_from([f"<{tag}>" for tag in TAGS]) | st.text("xy &;<", max_size=4), max_size=12)


@given(SOUP.map("".join))
@example('<img alt="a&#1b">')
def test_tag_soup_has_the_images_of_its_dom(html: str):
    assert attributes_by_stream(html) == attributes_in_dom(html)


def attributes_by_stream(html: str) -> list[tuple[str, dict[str, str]]]:
    page = extract_images(html.replace("<noscript>", "<i>"))
    return [(url, dict(texts)) for url, texts in page.images]


def attributes_in_dom(html: str) -> list[tuple[str, dict[str, str]]]:
    nodes = HTMLTree.parse(html.replace("<noscript>", "<i>")).document.get_elements_by_tag_name("img")
    return [
        (node.getattr("src", "").strip(), {n: v for n in ("alt", "title") if (v := collapse(node.getattr(n, "")))})
        for node in nodes
    ]


def collapse(text: str) -> str:
    return " ".join(re.sub("[\x00-\x1f\u200b]", " ", text).split())


def test_real_pages_have_the_images_and_captions_of_their_dom(shared_data):
    found, pages = 0, 0
    with tarfile.open(shared_data / "web" / "html_readability_130.tar.gz") as archive:
        for member in archive.getmembers():
            if not member.name.endswith("source.html"):
                continue
            html = archive.extractfile(member).read().decode("utf-8", "replace")
            # Unwrapped, every noscript image is an image of its own, as it is in the DOM.
            html = re.sub("(?i)</?noscript[^>]*>", "<br>", html)
            expected = [dom_texts(node) for node in HTMLTree.parse(html).document.get_elements_by_tag_name("img")]
            assert [texts for _, texts in images(html)] == expected, member.name
            found += len(expected)
            pages += 1
    assert (pages, found) == (130, 2_546)


def dom_texts(image: DOMNode) -> dict[str, str]:
    texts = {name: collapse(image.getattr(name, "")) for name in ("alt", "title")}
    node = image.parent
    while node is not None and node.tag != "figure":
        node = node.parent
    caption = node.query_selector("figcaption") if node is not None else None
    if caption is not None:
        texts["figcaption"] = collapse(readable(caption))
    return {name: text for name, text in texts.items() if text}


INLINE = {"a", "b", "cite", "code", "em", "i", "small", "span", "strong", "sub", "sup", "time", "u"}


def readable(node: DOMNode) -> str:
    """Return the text a reader sees: words apart that other than inline tags keep apart, no scripts."""
    if node.type == NodeType.TEXT:
        return node.value
    if node.tag in ("script", "style", "template") or node.type == NodeType.COMMENT:
        return ""
    text = "".join(map(readable, node.child_nodes))
    return text if node.tag in INLINE else f" {text} "
