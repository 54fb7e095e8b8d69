"""Training and data mining assertions in C2PA manifests (CAWG 1.1; C2PA 1.4 and before, whose labels begin c2pa.).

    "cawg.training-mining": {"entries": {"cawg.ai_training": {"use": "notAllowed"}, ...}}

`notAllowed` forbids, and so does `constrained` without further details (section 3.1). The signature is not verified, so
no library is needed: any refusal counts, and no statement here counts as permission.
"""

import re

from pipeline.consent.policy import TRAINING, Signal, Statement, combine, in_words, refuses_use

_ASSERTION = re.compile(rb"(?:c2pa|cawg)\.training-mining[\w.]*\0")
_ENTRY = re.compile(rb"(?:c2pa|cawg)\.(data_mining|ai_training|ai_generative_training|ai_inference)\b")
# Text strings in CBOR, after a byte with their length, and in JSON.
_VALUE = re.compile(rb"[\x67\"](allowed)|[\x6a\"](notAllowed)|[\x6b\"](constrained)")
_MAX_ASSERTION_BYTES = 1 << 16


def read_c2pa(boxes: bytes) -> Statement | None:
    """Return the statement in the JUMBF boxes of an image; without such an assertion, only that there is a manifest."""
    if b"c2pa" not in boxes:
        return None
    stated = []
    for assertion in _ASSERTION.finditer(boxes):
        end = boxes.find(b"jumb", assertion.end())
        stated.append(_entries(boxes[assertion.end() : end if end >= 0 else assertion.end() + _MAX_ASSERTION_BYTES]))
    preferences = combine(stated)
    if not preferences:
        return Statement(Signal.C2PA, "a manifest", refuses=False)
    return Statement(Signal.C2PA, f"{in_words(preferences)} (training-mining)", refuses_use(preferences))


def _entries(assertion: bytes) -> dict[str, bool]:
    """Return use -> is it allowed, of one assertion, whose entries follow each other."""
    labels = list(_ENTRY.finditer(assertion))
    stated = []
    for label, following in zip(labels, [*labels[1:], None], strict=True):
        value = _VALUE.search(assertion, label.end(), following.start() if following else len(assertion))
        if value is not None:
            use = "ai-input" if label[1] == b"ai_inference" else TRAINING
            stated.append({use: value[1] is not None})
    return combine(stated)
