"""Plant failures, and cases close to them, of image requests: one function per class of failure."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

from pipeline.demo.drawing import draw, encode
from pipeline.demo.publishing import PAGE_HOSTS, TABLE_HOSTS, Publisher
from pipeline.demo.scenes import Scene
from pipeline.demo.site import Answer
from pipeline.records import Reason

RETRIES = 2  # as `fetch.retries` has it
ROBOTS_ALLOW = "User-agent: *\nDisallow:\n"
_JPEG = {"Content-Type": "image/jpeg"}


def plant_failures(web: Publisher) -> None:
    """Plant every class of this module."""
    for plant in _PLANTERS:
        plant(web)


def _statuses(web: Publisher) -> None:
    for kind, status, count, reason in (
        ("dead link (404)", 404, 24, Reason.HTTP_NOT_FOUND),
        ("dead link (410)", 410, 12, Reason.HTTP_NOT_FOUND),
        ("forbidden (403)", 403, 8, Reason.HTTP_FORBIDDEN),
        ("unavailable for legal reasons (451)", 451, 4, Reason.HTTP_FORBIDDEN),
        ("other client error (400)", 400, 4, Reason.HTTP_CLIENT_ERROR),
    ):
        answers = [_answer(web, web.rng.choice(PAGE_HOSTS + TABLE_HOSTS), Answer(status)) for _ in range(count)]
        web.plant(kind, answers, reason)


def _server_errors(web: Publisher) -> None:
    down = [_answer(web, "down.example", Answer(503)) for _ in range(2)]
    web.plant("always an error (503)", down, Reason.HTTP_SERVER_ERROR, requests=1 + RETRIES)
    for kind, count, failure in (
        ("error, then success (500, 200)", 6, Answer(500)),
        ("Retry-After, then success (429, 200)", 4, Answer(429, headers={"Retry-After": "1"})),
    ):
        recovering = [_recovering(web, failure) for _ in range(count)]
        web.plant(kind, recovering, requests=2)


def _recovering(web: Publisher, failure: Answer) -> tuple[str, Scene]:
    scene = next(web.scenes)
    url = web.new_url("flaky.example")
    file = web.site.store(url, encode(draw(scene), "JPEG"))
    web.site.add(url, failure, Answer(file=file, headers=_JPEG))
    return url, scene


def _connections(web: Publisher) -> None:
    slow = [_manner(web, "slow.example", "drip") for _ in range(3)]
    web.plant("slower than the deadline", slow, Reason.TIMEOUT)
    cut = [_manner(web, "cut.example", "cut") for _ in range(6)]
    web.plant("truncated body", cut, Reason.TRUNCATED)
    reset = [_answer(web, "reset.example", Answer(manner="reset")) for _ in range(3)]
    # HTTP clients may repeat a request by themselves when a connection they had kept open breaks (RFC 9110, 9.2.2).
    web.plant("connection reset", reset, Reason.PROTOCOL_ERROR, Reason.CONNECT_FAILED, requests=2 * (1 + RETRIES))
    web.site.add("http://gone.example/robots.txt", Answer(manner="reset"))
    gone = [_answer(web, "gone.example", Answer(manner="reset")) for _ in range(4)]
    web.plant("host that resets everything", gone, Reason.ROBOTS_UNREACHABLE, Reason.HOST_UNAVAILABLE)


def _manner(web: Publisher, host: str, manner: str) -> tuple[str, Scene]:
    scene = next(web.scenes)
    url = web.new_url(host)
    file = web.site.store(url, encode(draw(scene), "JPEG"))
    web.site.add(url, Answer(file=file, headers=_JPEG, manner="drip" if manner == "drip" else "cut"))
    return url, scene


def _redirects(web: Publisher) -> None:
    web.plant("redirect", [_redirect(web, hops=1) for _ in range(8)])
    web.plant("chain of three redirects", [_redirect(web, hops=3) for _ in range(4)])
    loops = [_answer(web, "moved.example") for _ in range(4)]
    for url, _ in loops:
        web.site.add(url, Answer(302, headers={"Location": url + "?again"}))
        web.site.add(url + "?again", Answer(302, headers={"Location": url}))
        web.ledger.requests |= {url: 3, url + "?again": 3}  # the first request and five redirects
    web.plant("redirect loop", loops, Reason.TOO_MANY_REDIRECTS)
    for kind, count, location, reason in (
        ("redirect to a private address", 4, "http://169.254.169.254/latest/meta-data/", Reason.PRIVATE_ADDRESS),
        ("redirect to a local file", 2, "file:///etc/passwd", Reason.BAD_REDIRECT),
        ("redirect without a Location", 2, "", Reason.BAD_REDIRECT),
    ):
        headers = {"Location": location} if location else {}
        web.plant(kind, [_answer(web, "moved.example", Answer(302, headers=headers)) for _ in range(count)], reason)


def _redirect(web: Publisher, hops: int) -> tuple[str, Scene]:
    scene = next(web.scenes)
    url = web.picture("cdn.example", scene)
    for _ in range(hops):
        before = web.new_url("moved.example")
        web.site.add(before, Answer(301, headers={"Location": url}))
        url = before
    return url, scene


def _private_addresses(web: Publisher) -> None:
    hosts = ("169.254.169.254", "127.0.0.1", "10.0.0.5", "192.168.1.1:8080", "[::1]", "[fd00::1]")
    urls = [web.new_url(host) for host in hosts]
    web.ledger.unasked += urls
    web.plant("private address", [(url, next(web.scenes)) for url in urls], Reason.PRIVATE_ADDRESS)


def _robots(web: Publisher) -> None:
    ours = "User-agent: wit-pipeline\nDisallow: /private/\n\nUser-agent: *\nAllow: /\n"
    for host, robots in (
        ("members.example", "User-agent: *\nDisallow: /private/\nAllow: /\n"),
        ("nobots.example", ours),
        ("elsewhere.example", "User-agent: otherbot\nDisallow: /\n"),
    ):
        web.site.add(
            f"http://{host}/robots.txt", Answer(file=web.site.store(f"http://{host}/robots.txt", robots.encode()))
        )
    everyone = [_unasked(web, "members.example") for _ in range(8)]
    web.plant("robots.txt refuses everyone", everyone, Reason.ROBOTS_DISALLOWED)
    web.plant("robots.txt refuses us", [_unasked(web, "nobots.example") for _ in range(4)], Reason.ROBOTS_DISALLOWED)
    web.plant("robots.txt refuses another bot", [_fine(web, "elsewhere.example") for _ in range(4)])
    web.site.add("http://unwell.example/robots.txt", Answer(503))
    unwell = [_unasked(web, "unwell.example") for _ in range(2)]
    web.plant("robots.txt cannot be read (503)", unwell, Reason.ROBOTS_UNREACHABLE)


def _unasked(web: Publisher, host: str) -> tuple[str, Scene]:
    """Publish an image that robots.txt protects: a request for it is a failure of the build."""
    scene = next(web.scenes)
    url = web.new_url(host, folder="private")
    web.body(url, encode(draw(scene), "JPEG"))
    web.ledger.unasked.append(url)
    return url, scene


def _fine(web: Publisher, host: str, headers: dict[str, str] | None = None) -> tuple[str, Scene]:
    scene = next(web.scenes)
    return web.picture(host, scene, headers), scene


def _opt_outs(web: Publisher) -> None:
    for value, count, reasons in (
        ("noai", 6, [Reason.OPTED_OUT]),
        ("noai, max-image-preview:large", 6, [Reason.OPTED_OUT]),
        ("noimageai", 2, [Reason.OPTED_OUT]),
        ("none", 2, [Reason.OPTED_OUT]),
        ("wit-pipeline: noai", 4, [Reason.OPTED_OUT]),
        ("unavailable_after: 2020-01-01", 2, [Reason.OPTED_OUT]),
        ("unavailable_after: 2200-01-01", 2, []),
        ("otherbot: noai", 6, []),
        ("max-image-preview:large", 4, []),
    ):
        pictures = [_fine(web, "artists.example", {"X-Robots-Tag": value}) for _ in range(count)]
        web.plant(f"X-Robots-Tag: {value}", pictures, *reasons)


def _not_images(web: Publisher) -> None:
    page = b"<!doctype html><title>Not found</title><p>The picture you are looking for has moved.</p>"
    drawing = (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="200" height="200"><circle r="80" cx="100" cy="100"/></svg>'
    )
    web.plant("HTML named .jpg", [_body(web, page, "text/html") for _ in range(8)], Reason.NOT_AN_IMAGE)
    vector = [_body(web, drawing, "image/svg+xml") for _ in range(4)]
    web.plant("vector drawing", vector, Reason.NOT_AN_IMAGE, Reason.UNSUPPORTED_FORMAT)
    web.plant("empty file", [_body(web, b"") for _ in range(2)], Reason.NOT_AN_IMAGE)


def _broken_images(web: Publisher) -> None:
    half = [_damaged(web, lambda jpeg: jpeg[: len(jpeg) // 2]) for _ in range(6)]
    web.plant("half a JPEG", half, Reason.BROKEN_IMAGE)
    scrambled = [_damaged(web, lambda jpeg: jpeg[:160] + bytes(reversed(jpeg[160:]))) for _ in range(4)]
    web.plant("scrambled JPEG", scrambled, Reason.BROKEN_IMAGE)


def _damaged(web: Publisher, damage: Callable[[bytes], bytes]) -> tuple[str, Scene]:
    scene = next(web.scenes)
    return _body(web, damage(encode(draw(scene), "JPEG")))[0], scene


def _bombs(web: Publisher) -> None:
    headers = {"Content-Encoding": "gzip"}
    squeezed = gzip.compress(bytes(50_000_000), mtime=0)
    gzip_bombs = [_body(web, squeezed, headers=headers) for _ in range(2)]
    web.plant("gzip bomb", gzip_bombs, Reason.TOO_LARGE)
    endless = [_body(web, encode(Image.new("RGB", (1_000, 1_000)), "BMP")) for _ in range(2)]
    web.plant("more bytes than allowed", endless, Reason.TOO_LARGE)
    web.plant("50,000 x 50,000 PNG", [_body(web, _png_bomb(), "image/png") for _ in range(3)], Reason.TOO_MANY_PIXELS)


def _png_bomb() -> bytes:
    """Return a PNG whose header announces 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1_000)))
        + chunk(b"IEND", b"")
    )


def _odd_sizes(web: Publisher) -> None:
    for kind, count, width, height, reason in (
        ("banner (aspect ratio)", 6, 600, 60, Reason.ASPECT_RATIO),
        ("tiny image", 6, 24, 24, Reason.IMAGE_TOO_SMALL),
    ):
        web.plant(kind, [_resized(web, width, height) for _ in range(count)], reason)


def _resized(web: Publisher, width: int, height: int) -> tuple[str, Scene]:
    scene = next(web.scenes)
    stream = io.BytesIO()
    draw(scene).resize((width, height)).save(stream, "JPEG")
    return _body(web, stream.getvalue())[0], scene


def _answer(web: Publisher, host: str, *answers: Answer) -> tuple[str, Scene]:
    url = web.new_url(host)
    if answers:
        web.site.add(url, *answers)
    return url, next(web.scenes)


def _body(
    web: Publisher, body: bytes, mime: str = "image/jpeg", headers: dict[str, str] | None = None
) -> tuple[str, Scene]:
    url = web.new_url("uploads.example")
    web.body(url, body, mime, headers)
    return url, next(web.scenes)


_PLANTERS: tuple[Callable[[Publisher], None], ...] = (
    _statuses,
    _server_errors,
    _connections,
    _redirects,
    _private_addresses,
    _robots,
    _opt_outs,
    _not_images,
    _broken_images,
    _bombs,
    _odd_sizes,
)
