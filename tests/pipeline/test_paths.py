"""Sources on HTTP servers that refuse, fail or are gone."""

import re
import socket
from pathlib import Path

import pytest
from support.hostile_server import HostileServer, fixed, raw, server  # noqa: F401 a fixture

from pipeline.errors import ConfigError
from pipeline.paths import expand_paths


def message(url: str) -> str:
    with pytest.raises(ConfigError) as error:
        expand_paths([url], Path("/"))
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/401", "HTTP status 401 X; it needs a user and password"),
        ("/403", "HTTP status 403 X"),
        ("/500", "HTTP status 500 X"),
        ("/404", "matches no file"),
        ("/410", "matches no file"),
        ("/reset", "the server does not respond"),
    ],
)
def test_what_a_server_says_is_in_the_message(server: HostileServer, path: str, expected: str) -> None:  # noqa: F811
    text = message(server.url(path))
    assert re.match(rf"sources\.paths: {re.escape(server.url(path))}", text)
    assert expected in text
    assert "\n" not in text


def test_a_dead_server_is_named_as_such() -> None:
    with socket.socket() as bound:  # bound, but not listening
        bound.bind(("127.0.0.1", 0))
        assert "the server does not respond: " in message(f"http://127.0.0.1:{bound.getsockname()[1]}/pairs.csv")
    assert "the server does not respond: " in message("http://no-such-host.invalid/pairs.csv")


def test_a_file_that_is_there_is_found(server: HostileServer) -> None:  # noqa: F811
    server.routes["/pairs.csv"] = fixed(200, b"url,caption\n")
    assert expand_paths([server.url("/pairs.csv")], Path("/")) == [server.url("/pairs.csv")]
