"""Content-Usage and Content-Signal values: every example of the drafts and of Cloudflare, decided as written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.consent.content_signal import read_content_signal
from pipeline.consent.content_usage import read_content_usage, read_content_usage_header

# The examples of draft-ietf-aipref-vocab-08 section 6 and of draft-ietf-aipref-attach-05, then what follows from them.
CONTENT_USAGE = {
    "train-ai=y, search=n": {"train-ai": True, "search": False},
    'train-ai=y, train-ai, search=n, search="n"': {},
    "train-ai;allow=n, train-ai=y": {"train-ai": True},
    'train-ai;has;parameters="?";': {},
    'train-ai;has;parameters="?"': {},
    "train-ai=n": {"train-ai": False},
    "train-ai=y": {"train-ai": True},
    "  train-ai=n\t": {"train-ai": False},
    "train-ai=n;until=2030": {"train-ai": False},
    "train-ai=y, train-ai=n": {"train-ai": False},
    "train-ai=n, train-ai=y": {"train-ai": True},
    "train-ai=no": {},
    "train-ai=N": {},
    "train-ai=?0": {},
    'train-ai="n"': {},
    "train-ai=(n)": {},
    "Train-AI=n": {},
    "TRAIN-AI=N": {},
    "train-ai": {},
    "train-ai = n": {},
    "somethingelse=n": {},
    "somethingelse=n, train-ai=n": {"train-ai": False},
    "train-ai=n, ,": {},
    "": {},
    "\u0442rain-ai=n": {},
    "train-genai=n": {"train-ai": False},
    "bots=n": {"train-ai": False},
}


@pytest.mark.parametrize("value", CONTENT_USAGE, ids=repr)
def test_content_usage(value: str) -> None:
    assert read_content_usage(value) == CONTENT_USAGE[value]


def test_header_lines_are_one_dictionary() -> None:
    assert read_content_usage_header(["search=y", "train-ai=n"]) == {"train-ai": False, "search": True}
    assert read_content_usage_header(["train-ai=n", "train-ai=y"]) == {"train-ai": True}


CONTENT_SIGNAL = {
    "search=yes, ai-train=no": {"search": True, "train-ai": False},
    "search=yes,ai-train=no": {"search": True, "train-ai": False},
    "search=yes,ai-train=no,use=reference": {"search": True, "train-ai": False},
    "search=yes, ai-input=no, ai-train=no": {"search": True, "ai-input": False, "train-ai": False},
    "ai-train=yes, search=yes, ai-input=yes": {"train-ai": True, "search": True, "ai-input": True},
    "search=yes": {"search": True},
    "AI-Train=No": {"train-ai": False},
    "ai-train = no": {"train-ai": False},
    "ai_train=no": {"train-ai": False},
    "ai train: no": {"train-ai": False},
    "aitrain=no": {"train-ai": False},
    "ai-training=no": {"train-ai": False},
    "train-ai=n": {"train-ai": False},
    'ai-train="no"': {"train-ai": False},
    "ai-train=false": {"train-ai": False},
    "search=yes; ai-train=no": {"search": True, "train-ai": False},
    "search=yes ai-train=no": {"search": True, "train-ai": False},
    "ai-train=no, ai-train=yes": {"train-ai": False},
    "ai-train=maybe": {},
    "ai-train": {},
    "": {},
}


@pytest.mark.parametrize("value", CONTENT_SIGNAL, ids=repr)
def test_content_signal(value: str) -> None:
    assert read_content_signal(value) == CONTENT_SIGNAL[value]


@given(st.text(max_size=200))
def test_any_text_is_read(value: str) -> None:
    assert set(read_content_usage(value)) | set(read_content_signal(value)) <= {"train-ai", "search", "ai-input"}
