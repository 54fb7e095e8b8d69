"""The responses of the simulated web, by URL: written by `make_world`, read by the server.

`site.json` maps each URL to its responses; the first request gets the first one, the second the second, and all later
requests the last one, so that `[500, 200]` is a host that recovers:

    {"http://flaky.example/1.jpg": [{"status": 500}, {"file": "flaky.example/1.jpg", "headers": {...}}], ...}
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Manner = Literal["whole", "drip", "cut", "reset"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One response.

    `file` is the body, a path under files/. `manner`: "whole"; "drip": one byte every now and then, never all;
    "cut": the connection closes half way through the body; "reset": it closes before any header.
    """

    status: int = 200
    file: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    manner: Manner = "whole"


@dataclass
class Site:
    """All responses of the simulated web, and the folder of their bodies."""

    directory: Path
    answers: dict[str, list[Answer]] = field(default_factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "Site":
        """Read a folder that `save` wrote."""
        listed = json.loads((directory / "site.json").read_text(encoding="utf-8"))
        return cls(directory, {url: [Answer(**answer) for answer in answers] for url, answers in listed.items()})

    def save(self) -> None:
        """Write site.json."""
        listed = {url: [_changed_fields(answer) for answer in answers] for url, answers in self.answers.items()}
        text = json.dumps(listed, ensure_ascii=False, indent=0, sort_keys=True)
        (self.directory / "site.json").write_text(text, encoding="utf-8")

    def add(self, url: str, *answers: Answer) -> None:
        """Set the responses of a URL, once per URL."""
        if url in self.answers:
            raise ValueError(f"{url} already has responses")
        self.answers[url] = list(answers)

    def store(self, url: str, body: bytes) -> str:
        """Write a body where its URL suggests, files/HOST/PATH, and return that path for `Answer.file`."""
        name = url.removeprefix("http://")
        path = self.directory / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return name

    def body(self, answer: Answer) -> bytes:
        """Return the body of a response; empty if it has none."""
        return (self.directory / "files" / answer.file).read_bytes() if answer.file else b""


def _changed_fields(answer: Answer) -> dict[str, object]:
    default = asdict(Answer())
    return {name: value for name, value in asdict(answer).items() if value != default[name]}
