"""Generate the demo: a web, evaluation sets, a query list, and the ledger of planted items.

    DIR/web/site.json, files/       the server's responses
    DIR/web/sources/                WARC files and URL tables, the pipeline's input
    DIR/web/planted.json            planted items and their expected outcomes
    DIR/evals/objects/CLASS/*.png   evaluation sets
    DIR/queries.txt                 one query per line

Everything is derived from the seed: the same seed gives the same bytes.
"""

from pathlib import Path

from pipeline.demo.copies import plant_copies, plant_evals
from pipeline.demo.failures import ROBOTS_ALLOW, plant_failures
from pipeline.demo.ledger import Count, Fate, Ledger
from pipeline.demo.pages import write_sources
from pipeline.demo.publishing import (
    COLLECTIONS,
    EMPTY_COLLECTIONS,
    PAGE_HOSTS,
    TABLE_HOSTS,
    Mention,
    Publisher,
)
from pipeline.demo.scenes import COLOURS, PATTERNS, SHAPES
from pipeline.demo.site import Answer, Site
from pipeline.records import Reason

_COLLECTION_SHARE = 0.12  # of the ordinary pictures

_WORDS_OF_OTHER_LANGUAGES = (
    ("Hintergrund", "Kreis", "Quadrat", "Stern", "Herz", "Ring"),
    ("fond", "cercle", "carré", "étoile", "cœur", "anneau"),
    ("fondo", "círculo", "cuadrado", "estrella", "corazón", "anillo"),
    ("背景", "圆形", "正方形", "五角星", "心形"),
    ("円", "星", "ハート", "三日月"),
)
_PHRASES = ("red circle", "blue star", "yellow heart", "green square", "black cross", "white ring")
_NO_QUERY_CAPTIONS = (
    "IMG_{:04d}.JPG",
    "untitled ({:d})",
    "DSC{:05d}",
    "click to enlarge {:d}",
    "thumbnail {:d}",
    "Foto {:d}",
)


def make_world(directory: Path, seed: int = 7, pictures: int = 4_500) -> Ledger:
    """Write a world with about `pictures` ordinary pictures below `directory`; return its ledger."""
    (directory / "web").mkdir(parents=True, exist_ok=True)
    web = Publisher(Site(directory / "web"), Ledger(seed))
    _ordinary(web, pictures)
    _odd_words(web, no_query=pictures // 15)
    plant_failures(web)
    plant_copies(web)
    plant_evals(web, directory / "evals")
    _robots_for_all(web)
    for images in web.mentions.values():
        web.rng.shuffle(images)
    write_sources(web, directory / "web" / "sources")
    web.site.save()
    web.ledger.save(directory / "web" / "planted.json")
    (directory / "queries.txt").write_text("".join(f"{query}\n" for query in queries()), encoding="utf-8")
    return web.ledger


def queries() -> list[str]:
    """Return the query list: a few frequent queries, a long tail, and some that match nothing."""
    heads = [*COLOURS, *SHAPES, *PATTERNS[1:], "background", "small", "large"]
    others = [word for words in _WORDS_OF_OTHER_LANGUAGES for word in words]
    return [*heads, *others, *_PHRASES, *COLLECTIONS, *EMPTY_COLLECTIONS]


def _ordinary(web: Publisher, count: int) -> None:
    """Publish ordinary images, each mentioned once, by its own host."""
    for _ in range(count):
        scene = next(web.scenes)
        host = web.rng.choice(PAGE_HOSTS + TABLE_HOSTS)
        caption = web.caption(scene, in_collection=web.rng.random() < _COLLECTION_SHARE)
        mention = Mention(web.picture(host, scene), caption)
        web.mention(host, mention)
        web.ledger.ordinary.append(mention.uid)


def _odd_words(web: Publisher, no_query: int) -> None:
    """Mention images with text that no query matches or that is an attack, and invalid URLs."""
    for number in range(no_query):
        host = web.rng.choice(PAGE_HOSTS + TABLE_HOSTS)
        url = web.new_url(host)
        web.mention(host, Mention(url, web.rng.choice(_NO_QUERY_CAPTIONS).format(number)))
        web.ledger.unasked.append(url)
    web.ledger.counts.append(Count("caption without a query", "pairs", Reason.NO_MATCH, no_query))
    uids = []
    for host in PAGE_HOSTS:
        scene = next(web.scenes)
        mention = Mention(
            web.picture(host, scene), f"{web.caption(scene, in_collection=True)} {web.ledger.hostile_markup}"
        )
        web.mention(host, mention)
        uids.append(mention.uid)
    web.ledger.fates.append(Fate("caption with a <script>", (), tuple(uids)))
    addresses = (
        "file:///etc/passwd",
        "ftp://photos.example/a.jpg",
        "javascript:alert(1)",
        "http://",
        "http://a b/c.jpg",
    )
    for address in addresses:
        web.mention("photos.example", Mention(address, web.caption(next(web.scenes))))
    web.ledger.counts.append(Count("URL that is not http(s)", "pairs", Reason.BAD_URL, len(addresses)))
    essay = " ".join(web.caption(next(web.scenes), "en") for _ in range(800))
    web.mention("press.example", Mention(web.new_url("press.example"), essay))
    web.ledger.counts.append(Count("caption above the length limit", "pairs", Reason.CAPTION_TOO_LONG, 1))


def _robots_for_all(web: Publisher) -> None:
    """Give every other host a robots.txt that allows everything; the main hosts of the copies have none (404)."""
    hosts = sorted({url.split("/")[2] for url in web.site.answers} - {"cdn.example", "mirror.example"})
    for host in hosts:
        url = f"http://{host}/robots.txt"
        if url not in web.site.answers:
            web.site.add(
                url, Answer(file=web.site.store(url, ROBOTS_ALLOW.encode()), headers={"Content-Type": "text/plain"})
            )
