"""Hypothesis strategies of text formats: valid in parts, odd in others, where damaged files seldom get."""

import json
from typing import Any

from hypothesis import strategies as st

_URLS = [
    "http://a.example/1.jpg",
    "/1.jpg",
    "//b.example",
    "?",
    "http://h/p?",
    "data:image/gif;base64,R0",
    "http://[::1",
]
_TEXT = st.text(max_size=12) | st.sampled_from(["a dog", "é", "\ufffd", "&#x1F600;", "&#xD83D;", "猫"])
_URL = st.sampled_from([*_URLS, "http://a.example:99999/"]) | _TEXT
_CODECS = ["utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "shift_jis"]


def _encoded(texts: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda text, codec: text.encode(codec, "replace"), texts, st.sampled_from(_CODECS))


_ATTRIBUTES = ["src", "alt", "title", "srcset", "data-src", "data-srcset", "href", "name", "content", "charset"]
_TAGS = [
    "img",
    "picture",
    "source",
    "figure",
    "figcaption",
    "noscript",
    "template",
    "svg",
    "base",
    "meta",
    "a",
    "table",
    "p",
    "title",
    "!--",
    "![CDATA[",
]
_ATTRIBUTE = st.builds('{}="{}{}'.format, st.sampled_from(_ATTRIBUTES), _URL, st.sampled_from(['"', "", "'"]))
_TAG = st.builds("<{} {}>".format, st.sampled_from(_TAGS), st.lists(_ATTRIBUTE, max_size=4).map(" ".join))
_END = st.builds("</{}>".format, st.sampled_from(_TAGS))
HTML = _encoded(st.lists(_TAG | _END | _TEXT, max_size=40).map("".join))

_FIELDS = [
    "User-agent",
    "user-agent ",
    "Disallow",
    "Allow",
    "Crawl-delay",
    "Content-Signal",
    "Content-Usage",
    "Disalow",
]
_VALUES = ["*", "wit-pipeline", "wit-pipeline/1.0", "/", "/a", "/*.jpg$", "/a*b*c*d", "", "/%zz", "1e9"]
_SIGNALS = ["search=yes, ai-train=no", "train-ai=n", "/a train-ai=y"]
_VALUE = st.sampled_from([*_VALUES, *_SIGNALS]) | _TEXT
_COLON, _EOL = st.sampled_from([":", ": ", " "]), st.sampled_from(["\n", "\r", "\r\n", "\n\n", " # x\n"])
_RULE = st.builds("{}{}{}{}".format, st.sampled_from(_FIELDS), _COLON, _VALUE, _EOL)
ROBOTS = _encoded(st.lists(_RULE, max_size=30).map("".join))


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = _TEXT | st.sampled_from(["url", "caption"])
    return st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)


_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | _URL, _nested, max_leaves=12)
JSONL = _encoded(st.lists(_JSON.map(json.dumps), max_size=8).map("\n".join))
_ROW = st.lists(_URL.map('"{}"'.format) | _URL, min_size=1, max_size=3).map(",".join)
CSV = _encoded(st.lists(_ROW, max_size=8).map(lambda rows: "\n".join(["url,caption", *rows])))

_NAMES = ["Content-Type", "Content-Encoding", "Content-Length", "Transfer-Encoding", "Location", "X-Robots-Tag"]
_CONTENTS = ["text/html; charset=euc-kr", "gzip", "deflate", "br", "0", "-1", "5, 5", "chunked", "identity", "noai"]
_HEADER = st.builds("{}: {}\r\n".format, st.sampled_from(_NAMES), st.sampled_from(_CONTENTS) | _TEXT)
_STATUS = st.sampled_from(["HTTP/1.1 200 OK\r\n", "HTTP/1.0 200\n", "http/1.1 200 ok\r\n", "HTTP/2 99999 x\r\n", ""])
HTTP = _encoded(st.builds("{}{}\r\n{}".format, _STATUS, st.lists(_HEADER, max_size=6).map("".join), _TEXT))

_FILE = st.sampled_from(["out/1.parquet", "../x", "/etc/passwd", "a/../../b", "", ".", "a\0b"]) | _TEXT
_FACTS = st.fixed_dictionaries({"bytes": _JSON, "sha256": _JSON}) | _JSON
_OUTPUTS = st.dictionaries(_FILE, _FACTS, max_size=3) | _JSON
_COUNTS = st.dictionaries(_TEXT, _JSON, max_size=3) | _JSON
_MARKER = st.fixed_dictionaries({"digest": _JSON, "outputs": _OUTPUTS, "counts": _COUNTS})
MARKER = _MARKER.map(lambda marker: json.dumps(marker).encode())
