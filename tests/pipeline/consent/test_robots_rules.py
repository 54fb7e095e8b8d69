"""What robots.txt says about use: the drafts' files, Cloudflare's, named crawlers, and how people misspell them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.consent_cases import FREE, REFUSED

from pipeline.consent.ai_crawlers import preset_tokens, product_tokens
from pipeline.consent.policy import Signal, refusing
from pipeline.consent.robots_rules import read_usage_rules

PRESET = product_tokens(["ai-crawlers"])


def decides(text: str, path: str = "/a.jpg", agent: str = "wit-pipeline") -> Signal | None:
    refusal = refusing(read_usage_rules(text, agent, PRESET).statements(f"https://example.com{path}"))
    return None if refusal is None else refusal.signal


# draft-ietf-aipref-attach-05 figure 2, and the form of its predecessors in which every rule has a path.
DRAFT = """User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""


@pytest.mark.parametrize("text", [DRAFT, DRAFT.replace("Usage: train", "Usage: / train")], ids=["pathless", "path"])
@pytest.mark.parametrize(
    ("agent", "path", "signal"),
    [
        ("wit-pipeline", "/test", Signal.CONTENT_USAGE),
        ("wit-pipeline", "/ai-ok/test", None),
        ("examplebot", "/test", None),
        ("examplebot", "/ai-ok/test", None),
    ],
)
def test_the_file_of_the_attachment_draft(text: str, agent: str, path: str, signal: Signal | None) -> None:
    assert decides(text, path, agent) == signal


@pytest.mark.parametrize("text", REFUSED, ids=repr)
def test_files_that_say_no(text: str) -> None:
    assert decides(text) == REFUSED[text]


@pytest.mark.parametrize("text", FREE, ids=repr)
def test_files_that_do_not(text: str) -> None:
    assert decides(text) is None


def test_licences_and_hints() -> None:
    text = "License: https://e.com/l.xml\nUser-agent: *\nLicense: https://e.com/m.xml\n# see /.well-known/tdmrep.json\n"
    rules = read_usage_rules(text, "wit-pipeline", PRESET)
    assert rules.licences == ("https://e.com/l.xml", "https://e.com/m.xml")
    assert rules.names_tdm_file
    other = read_usage_rules("User-agent: Googlebot\nLicense: https://e.com/l.xml\n", "wit-pipeline", PRESET)
    assert other.licences == ()


def test_the_preset_holds_those_who_gather_training_data() -> None:
    tokens = {token.lower() for token in preset_tokens()}
    assert {"ccbot", "gptbot", "claudebot", "img2dataset", "google-extended"} <= tokens
    assert not {"googlebot", "bingbot", "chatgpt-user", "oai-searchbot"} & tokens
    assert product_tokens(["MyBot"]) == {"mybot"}


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    rules = read_usage_rules("User-agent: *\nContent-Usage: / train-ai=n\n" + text, "wit-pipeline", PRESET)
    assert all(statement.text for statement in rules.statements("https://example.com/a.jpg"))


def test_many_groups_with_many_rules_take_no_time() -> None:
    names = "".join(f"User-agent: {token}\n" for token in preset_tokens())
    text = names + "Disallow: /x\n" * 10_000 + "".join(f"User-agent: bot{n}\nDisallow: /\n" for n in range(10_000))
    rules = read_usage_rules(text, "wit-pipeline", PRESET)
    assert refusing(rules.statements("https://example.com/x")) is not None
    assert refusing(rules.statements("https://example.com/y")) is None
