"""Take secrets out of text before it is written or printed.

Secrets are: the user and password of a URL (for `s3://key:secret@bucket` too), values of parameters that are keys,
signatures or tokens by their names, and the values of this process's environment variables with such names. The same
text gives the same text without secrets in every process that has the same environment.
"""

import os
import re

HIDDEN = "***"

_USERINFO = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"<>|]*@")
_KEYS_OF_STORE = re.compile(r"(?P<scheme>(?!https?:|ftps?:)\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/:@]+:[^\s@]*@")
"""Keys of object stores have slashes; where a port may follow the host, a slash ends it."""
_QUOTED_USERINFO = re.compile(r"(?<=[\"'])(?!mailto:)[^\s\"'/:@]+:[^\s\"'@]+@")
"""What clients quote of a URL without its scheme: `Invalid bucket name "key:secret@bucket"`."""
_SECRET_NAME = (
    r"(?:[\w.-]*(?:sig|signature|token|secret|passw(?:or)?d|passwd|pwd|credentials?|auth|authorization|session|jwt|hmac|"
    r"api[_-]?key|access[_-]?key(?:[_-]?id)?|awsaccesskeyid|googleaccessid|key[_-]pair[_-]id|policy)|key)"
)
_PARAMETER = re.compile(rf"(?P<name>[?&;#]{_SECRET_NAME}=)[^&;#\s'\"<>|]+", re.IGNORECASE)
_SECRET_VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY)", re.IGNORECASE
)
_SHORTEST_VALUE = 8
"""Minimum length of a variable's value to redact: shorter ones occur in ordinary text."""


def redact(text: str) -> str:
    """Return `text` without secrets."""
    if "://" in text:
        text = _KEYS_OF_STORE.sub(r"\g<scheme>", text)
        text = _USERINFO.sub(r"\g<scheme>", text)
    if "@" in text:
        text = _QUOTED_USERINFO.sub("", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\g<name>{HIDDEN}", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_VALUE and value in text and _SECRET_VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    return text
