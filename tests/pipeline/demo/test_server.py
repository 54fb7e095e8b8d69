"""The server behaves as its site says: each planted behaviour through a plain client."""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from pipeline.demo.server import RunningWeb, serve
from pipeline.demo.site import Answer, Site

BODY = b"picture" * 100


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWeb]:
    site = Site(tmp_path_factory.mktemp("web"))
    file = site.store("http://photos.example/a.jpg", BODY)
    site.add("http://photos.example/a.jpg", Answer(file=file, headers={"Content-Type": "image/jpeg"}))
    site.add("http://photos.example/a.jpg?size=2", Answer(file=file))
    site.add("http://museum.example/a.jpg", Answer(410))
    site.add("http://flaky.example/500", Answer(500), Answer(file=file))
    site.add("http://flaky.example/429", Answer(429, headers={"Retry-After": "1"}), Answer(file=file))
    site.add("http://moved.example/a", Answer(302, headers={"Location": "http://photos.example/a.jpg"}))
    site.add("http://cut.example/a", Answer(file=file, manner="cut"))
    site.add("http://slow.example/a", Answer(file=file, manner="drip"))
    site.add("http://reset.example/a", Answer(manner="reset"))
    site.save()
    with serve(site.directory) as web:
        yield web


def get(running: RunningWeb, url: str, timeout_s: float = 10) -> tuple[http.client.HTTPResponse, bytes]:
    gateway, asked = urlsplit(running.gateway), urlsplit(url)
    path = asked.path + (f"?{asked.query}" if asked.query else "")
    with closing(http.client.HTTPConnection(gateway.netloc, timeout=timeout_s)) as connection:
        connection.request("GET", path, headers={"Host": asked.netloc})
        response = connection.getresponse()
        return response, response.read()


def test_hosts_are_told_apart_and_queries_belong_to_the_url(running: RunningWeb) -> None:
    response, body = get(running, "http://photos.example/a.jpg")
    assert (response.status, response.headers["Content-Type"], body) == (200, "image/jpeg", BODY)
    assert get(running, "http://photos.example/a.jpg?size=2")[1] == BODY
    assert get(running, "http://museum.example/a.jpg")[0].status == 410
    assert get(running, "http://museum.example/other.jpg")[0].status == 404


def test_flaky_urls_recover(running: RunningWeb) -> None:
    for path, first in (("500", 500), ("429", 429)):
        before, _ = get(running, f"http://flaky.example/{path}")
        after = [get(running, f"http://flaky.example/{path}") for _ in range(2)]
        assert before.status == first
        assert [(response.status, body) for response, body in after] == [(200, BODY)] * 2


def test_redirects_say_where_to(running: RunningWeb) -> None:
    response, _ = get(running, "http://moved.example/a")
    assert (response.status, response.headers["Location"]) == (302, "http://photos.example/a.jpg")


def test_a_cut_body_is_shorter_than_announced(running: RunningWeb) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(running, "http://cut.example/a")
    assert caught.value.partial == BODY[: len(BODY) // 2]
    assert caught.value.expected == len(BODY) - len(BODY) // 2


def test_a_slow_body_drips_on(running: RunningWeb) -> None:
    gateway = urlsplit(running.gateway)
    connection = http.client.HTTPConnection(gateway.netloc, timeout=10)
    connection.request("GET", "/a", headers={"Host": "slow.example"})
    response = connection.getresponse()
    assert int(response.headers["Content-Length"]) == len(BODY)
    start = time.monotonic()
    assert response.read(3) == BODY[:3]
    assert time.monotonic() - start > 0.3, "three bytes should take two intervals"
    connection.close()


def test_a_reset_comes_before_any_header(running: RunningWeb) -> None:
    with pytest.raises(ConnectionResetError):
        get(running, "http://reset.example/a")


def test_requests_are_counted_by_url(running: RunningWeb) -> None:
    before = running.requests()
    get(running, "http://photos.example/a.jpg")
    get(running, "http://nowhere.example/x?y=1")
    assert running.requests() - before == {"http://photos.example/a.jpg": 1, "http://nowhere.example/x?y=1": 1}


def test_the_server_ends_with_its_parent(tmp_path: Path) -> None:
    """Even one that is killed and cannot tidy up."""
    Site(tmp_path).save()
    script = "import sys, time\nfrom pathlib import Path\nfrom pipeline.demo.server import serve\n"
    script += "with serve(Path(sys.argv[1])) as web:\n    print(web.gateway, flush=True)\n    time.sleep(100)\n"
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    orphan = RunningWeb(parent.stdout.readline().strip())
    assert orphan.requests() == {}
    parent.kill()
    parent.communicate()
    assert any(_is_gone(orphan) for _ in range(600))


def _is_gone(running: RunningWeb) -> bool:
    time.sleep(0.05)
    try:
        running.requests()
    except OSError:
        return True
    return False


def test_a_url_is_decided_once(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.add("http://a.example/", Answer(404))
    with pytest.raises(ValueError, match="already has responses"):
        site.add("http://a.example/", Answer(200))


def test_a_site_survives_its_file(tmp_path: Path) -> None:
    site = Site(tmp_path)
    file = site.store("http://a.example/x/y.jpg", BODY)
    site.add("http://a.example/x/y.jpg", Answer(500), Answer(file=file, manner="cut", headers={"A": "b"}))
    site.save()
    loaded = Site.load(tmp_path)
    assert loaded == site
    assert loaded.body(loaded.answers["http://a.example/x/y.jpg"][1]) == BODY
