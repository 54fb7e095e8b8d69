"""What robots.txt says about use: the drafts' files, Cloudflare's, named crawlers, and how people misspell them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


CLOUDFLARE = """# As a condition of accessing this website, you agree to abide by the following
# content signals ...
# BEGIN Cloudflare Managed content

User-agent: *
Content-Signal: search=yes,ai-train=no
Allow: /

User-agent: Amazonbot
Disallow: /

User-agent: CCBot
Disallow: /

User-agent: GPTBot
Disallow: /
# END Cloudflare Managed Content
"""
POLICY_ONLY = "User-Agent: *\nContent-Signal: ai-train=yes, search=yes, ai-input=yes\nAllow: /\n"

REFUSED = {
    CLOUDFLARE: Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("\n", "\r\n"): Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("\n", "\r"): Signal.CONTENT_SIGNAL,
    CLOUDFLARE.replace("ai-train=no", "ai-train=yes"): Signal.ALSO_OBEY,
    "User-agent: CCBot\nUser-agent: GPTBot\nUser-agent: img2dataset\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: *\nAllow: /\n\nUser-agent: GPTBot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: img2dataset/1.41\nDisallow: /": Signal.ALSO_OBEY,
    "user agent: ccbot\ndisalow: /": Signal.ALSO_OBEY,
    "User-agent: GPTBot*\nDisallow: *": Signal.ALSO_OBEY,
    "User-agent: Kangaroo Bot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent GPTBot\nDisallow /": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nSitemap: http://e.com/s.xml\nUser-agent: Googlebot\nDisallow: /": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nDisallow: /\nAllow: /b": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nDisallow: /*.jpg$": Signal.ALSO_OBEY,
    "User-agent: GPTBot\nContent-Usage: train-ai=n\n\nUser-agent: *\nContent-Usage: train-ai=y": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: / train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage:/ train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: /\ttrain-ai=n # no": Signal.CONTENT_USAGE,
    "User-agent: *\n\tcontent-usage \t: \ttrain-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nCONTENT-USAGE: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent_Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContentUsage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\n\nContent-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "Content-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "Content-Usage: train-ai=n\nUser-agent: wit-pipeline\nAllow: /": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: / train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: train-ai=y\nContent-Usage: /*.jpg train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: train-ai=y\n\nUser-agent: *\nContent-Usage: train-ai=n": Signal.CONTENT_USAGE,
    "User-agent: wit-pipeline\nContent-Usage: train-ai=n\n\nUser-agent: *\nAllow: /": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Usage: search=n": Signal.CONTENT_USAGE,
    "User-agent: *\nContent-Signal: ai-train=no": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-Signals: ai-train=no": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-signal: search=yes, ai_train=NO": Signal.CONTENT_SIGNAL,
    "User-agent: *\nContent-Signal: /a ai-train=no": Signal.CONTENT_SIGNAL,
    "Content-Signal: ai-train=no\n\nUser-agent: *\nAllow: /": Signal.CONTENT_SIGNAL,
    "User-agent: *\nTDM-Reservation: 1": Signal.TDM_RESERVATION,
    "tdm-reservation: 1": Signal.TDM_RESERVATION,
}

FREE = [
    "",
    "User-agent: *\nAllow: /",
    POLICY_ONLY,
    "User-agent: *\nContent-Signal: search=yes",
    "User-agent: *\nContent-Usage: train-ai=y, search=n",
    "User-agent: *\nContent-Usage: train-ai=no",
    "User-agent: *\nContent-Usage: Train-AI=n",
    "User-agent: *\nContent-Usage: /b/ train-ai=n",
    "User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /a train-ai=y",
    "# Content-Usage: train-ai=n\nUser-agent: *\nAllow: /",
    "User-agent: otherbot\nContent-Usage: train-ai=n",
    "User-agent: otherbot\nContent-Signal: ai-train=no\n\nUser-agent: *\nAllow: /",
    "User-agent: otherbot\nDisallow: /",
    "User-agent: Googlebot\nDisallow: /\n\nUser-agent: bingbot\nDisallow: /",
    "User-agent: GPTBot\nDisallow:",
    "User-agent: GPTBot\nDisallow: /private/",
    "User-agent: GPTBot\nDisallow: /\nAllow: /a",
    "User-agent: GPTBotanist\nDisallow: /",
    "User-agent: wit-pipeline\nAllow: /\n\nUser-agent: GPTBot\nDisallow: /",
    "User-agent: wit-pipeline\nContent-Usage: train-ai=y\n\nUser-agent: *\nContent-Usage: train-ai=n",
    "User-agent: *\nTDM-Reservation: 0",
    "User-agent: *\nDisallow: /content-usage/train-ai=n",
]


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
