"""What people say of the pairs that a report shows: the page lets them judge blind, `wit report --reviews` folds it in.

A review file is what the page saves: {"judge": "...", "verdicts": [{"eval", "eval_id", "uid", "verdict"}, ...]}, with
the verdicts "same", "different" and "unsure". The pairs shown are spread evenly over the distances of all matches, so
the fraction of them that is right estimates the precision.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dedup.errors import DedupError
from dedup.statistics import Proportion, contamination

VERDICTS = ("same", "different", "unsure")
_MAX_BYTES = 1 << 26

Pair = tuple[str, str, str]
"""Evaluation set, example, uid."""


@dataclass(frozen=True)
class Reviews:
    """The verdicts of all judges: judge -> pair -> verdict."""

    verdicts: Mapping[str, Mapping[Pair, str]]

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Self:
        """Read review files; of a judge's two verdicts on a pair the later file's counts.

        Raises:
            DedupError: a file is not a review.
        """
        verdicts: dict[str, dict[Pair, str]] = {}
        for path in paths:
            for review in _read(path):
                verdicts.setdefault(review["judge"], {}).update(
                    {(v["eval"], v["eval_id"], v["uid"]): v["verdict"] for v in review["verdicts"]}
                )
        return cls(verdicts)

    def to_json(self) -> str:
        """Return one file of all reviews, which `read` reads again."""
        reviews = [
            {
                "judge": judge,
                "verdicts": [
                    dict(zip(("eval", "eval_id", "uid", "verdict"), (*pair, verdict), strict=True))
                    for pair, verdict in sorted(verdicts.items())
                ],
            }
            for judge, verdicts in sorted(self.verdicts.items())
        ]
        return json.dumps(reviews, indent=1, ensure_ascii=False) + "\n"

    def of(self, pairs: Collection[Pair]) -> "Judged | None":
        """Return what was said of these pairs; None if nothing was."""
        said: dict[Pair, list[str]] = defaultdict(list)
        for verdicts in self.verdicts.values():
            for pair in pairs:
                if pair in verdicts:
                    said[pair].append(verdicts[pair])
        if not said:
            return None
        counts = Counter(_majority(verdicts) for verdicts in said.values())
        several = [verdicts for verdicts in said.values() if len(verdicts) > 1]
        agreed = sum(len(set(verdicts)) == 1 for verdicts in several)
        judges = sum(any(pair in verdicts for pair in pairs) for verdicts in self.verdicts.values())
        return Judged(counts["same"], counts["different"], counts["unsure"], judges, agreed, len(several))


@dataclass(frozen=True)
class Judged:
    """How many pairs of a set are the same image, by the majority of the judges, and how far they agree."""

    same: int
    different: int
    unsure: int
    judges: int
    agreed: int  # pairs on which all judges say the same
    judged_by_several: int

    @property
    def precision(self) -> Proportion:
        """Return the fraction of right pairs among those decided, with a 95 % interval."""
        return contamination(self.same, self.same + self.different)


def _majority(verdicts: list[str]) -> str:
    """Return what most judges say; "unsure" if as many say the same as say different."""
    same, different = verdicts.count("same"), verdicts.count("different")
    return "unsure" if same == different else "same" if same > different else "different"


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DedupError(f"{path}: larger than {_MAX_BYTES >> 20} MiB: not a review")
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # an unpaired surrogate cannot be written
    except FileNotFoundError:
        raise DedupError(f"{path}: no such file") from None
    except OSError as error:
        raise DedupError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DedupError(f"{path}: not a review ({error})") from error
    reviews = content if isinstance(content, list) else [content]
    for review in reviews:
        if not isinstance(review, dict) or not isinstance(review.get("judge"), str):
            raise DedupError(f"{path}: not a review: it names no judge")
        if not isinstance(review.get("verdicts"), list) or not all(map(_is_verdict, review["verdicts"])):
            raise DedupError(
                f"{path}: not a review: a verdict lacks eval, eval_id, uid or one of {', '.join(VERDICTS)}"
            )
    return reviews


def _is_verdict(value: Any) -> bool:
    names = ("eval", "eval_id", "uid", "verdict")
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in names)
        and value["verdict"] in VERDICTS
    )
