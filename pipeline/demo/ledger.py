"""The planted items and their expected outcomes: `make_world` writes them as planted.json, the comparison reads them.

{"fates":    [{"kind": "dead link (404)", "reasons": ["http_not_found"], "uids": ["0f3a...", ...]}, ...],
 "counts":   [{"kind": "caption without a query", "stage": "pairs", "reason": "no_match", "number": 300}, ...],
 "copies":   [{"kind": "exact copy", "reason": "exact_duplicate", "groups": [["0f3a...", "77b1..."], ...]}, ...],
 "overlaps": [{"kind": "mirrored", "eval_set": "objects", "matches": {"0f3a...": "red circle/03.png"}}, ...],
 "requests": {"http://flaky.example/1.jpg": 2}, "unasked": ["http://photos.example/IMG_1.jpg"], ...}
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fate:
    """Pairs that must end with one of these reasons; with none: in the final set."""

    kind: str
    reasons: tuple[str, ...]
    uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """The number of rows that a stage must drop for a reason; they have no uid."""

    kind: str
    stage: str
    reason: str
    number: int


@dataclass(frozen=True, slots=True)
class Copies:
    """Groups of pairs of one image: one of each group must stay, the others must be dropped for `reason`."""

    kind: str
    reason: str
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Pairs whose image is in an evaluation set: uid -> example, a path below the folder of the set."""

    kind: str
    eval_set: str
    matches: dict[str, str]
    is_edited: bool = False  # beyond what a perceptual hash finds


@dataclass
class Ledger:
    """The content of planted.json.

    `ordinary` are the uids of ordinary pairs; only balancing may drop them.
    `requests`: URLs that are requested more than once, by design; every other URL at most once.
    `unasked`: URLs that must never be requested. `eval_sets`: name -> number of examples.
    `hostile_markup` is in some captions.
    """

    seed: int
    fates: list[Fate] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    copies: list[Copies] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    ordinary: list[str] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    unasked: list[str] = field(default_factory=list)
    eval_sets: dict[str, int] = field(default_factory=dict)
    hostile_markup: str = '<script>document.title="planted"</script>'

    def save(self, path: Path) -> None:
        """Write planted.json."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Ledger":
        """Read what `save` wrote."""
        listed = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **listed
            | {
                "fates": [Fate(f["kind"], tuple(f["reasons"]), tuple(f["uids"])) for f in listed["fates"]],
                "counts": [Count(**c) for c in listed["counts"]],
                "copies": [Copies(c["kind"], c["reason"], tuple(map(tuple, c["groups"]))) for c in listed["copies"]],
                "overlaps": [Overlap(**o) for o in listed["overlaps"]],
            }
        )
