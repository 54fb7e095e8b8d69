"""The account of every pair: at each stage, inputs = kept + the sum over a closed list of reasons.

Counts come from the units' markers, so the account is the same on every runner and after any number of crashes.

    pairs     rows read from the sources        -> matched
    plan      matched pairs                     -> unique uids, within cap x slack
    fetched   planned pairs                     -> images
    filtered  images                            -> images that pass the filters on them, if there are any
    dedup     images                            -> without duplicates (and eval images, if they are removed)
    balance   unique images                     -> within the cap
    shards    kept pairs                        -> samples in tars

Each line has the name of its stage; the final balance is part of the dedup stage.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engine.units import add_counts, read_markers, read_stage
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason, is_reason

ACCOUNT_LINES = ("pairs", "plan", "fetched", "filtered", "dedup", "balance", "shards")

_LAST_OF_STAGE = {"pairs": "pairs", "plan": "plan", "fetched": "fetched", "dedup": "balance"}


@dataclass(frozen=True)
class StageAccount:
    """The rows that one stage read, the rows it kept, and the reasons of the others."""

    stage: str
    inputs: int
    kept: int
    reasons: Mapping[str, int]

    @classmethod
    def of(cls, stage: str, counts: Mapping[str, int]) -> "StageAccount":
        reasons = {name: n for name, n in sorted(counts.items()) if name not in ("inputs", "kept") and n}
        return cls(stage, counts.get("inputs", 0), counts.get("kept", 0), reasons)

    def problems(self) -> list[str]:
        """Return the errors of the account, one line each."""
        found = [f"{self.stage}: unknown reason {name!r}" for name in sorted(self.reasons) if not is_reason(name)]
        lost = self.inputs - self.kept - sum(self.reasons.values())
        if lost:
            found.append(
                f"{self.stage}: {self.inputs:,} in, but {lost:,} rows are neither kept nor dropped for a reason"
            )
        return found


@dataclass(frozen=True)
class Account:
    """The finished stages, in order."""

    stages: tuple[StageAccount, ...]

    def problems(self) -> list[str]:
        """Return the problems of the account; empty if it closes."""
        found = [problem for stage in self.stages for problem in stage.problems()]
        for before, after in zip(self.stages, self.stages[1:], strict=False):
            if before.kept != after.inputs:
                found.append(
                    f"{after.stage}: {before.stage} kept {before.kept:,} pairs, but {after.inputs:,} were read; "
                    "the build is not finished: run `wit build` to update the later stages"
                )
        return found

    def inputs_of(self, stage: str) -> int:
        """Return the rows that a stage read; 0 if it has not run."""
        return next((line.inputs for line in self.stages if line.stage == stage), 0)

    def emptied_by(self) -> StageAccount | None:
        """Return the first stage that kept nothing, if any: the dataset is then empty, although no stage failed."""
        return next((stage for stage in self.stages if not stage.kept), None)

    def up_to(self, stage: str) -> "Account":
        """Return the account up to the last line of a stage of the build."""
        last = _LAST_OF_STAGE.get(stage, ACCOUNT_LINES[-1])
        lines = ACCOUNT_LINES[: ACCOUNT_LINES.index(last) + 1]
        return Account(tuple(line for line in self.stages if line.stage in lines))

    def to_json(self) -> list[dict[str, Any]]:
        return [{"stage": s.stage, "inputs": s.inputs, "kept": s.kept, "reasons": dict(s.reasons)} for s in self.stages]


def read_account(workspace: Workspace) -> Account:
    """Add up the markers of a workspace, up to the last stage that has started."""
    return Account(tuple(_stages(workspace)))


def _stages(workspace: Workspace) -> Iterable[StageAccount]:
    pairs = read_markers(workspace, "pairs")
    if pairs:
        yield StageAccount.of("pairs", add_counts(pairs.values()))
    plan = read_stage(workspace, "plan")
    if plan is None:
        return
    yield StageAccount.of("plan", plan.counts)
    fetched = read_markers(workspace, "fetched")
    if fetched:
        yield StageAccount.of("fetched", add_counts(fetched.values()))
    filtered = read_markers(workspace, "filtered")
    if filtered:
        yield StageAccount.of("filtered", add_counts(filtered.values()))
    dedup = read_stage(workspace, "dedup")
    if dedup is None:
        return
    unique = {name: n for name, n in dedup.counts.items() if name not in ("kept", Reason.OVER_FINAL_CAP)}
    over = dedup.counts.get(Reason.OVER_FINAL_CAP, 0)
    survived = dedup.counts["kept"] + over
    yield StageAccount.of("dedup", unique | {"kept": survived})
    yield StageAccount.of("balance", {"inputs": survived, "kept": dedup.counts["kept"], Reason.OVER_FINAL_CAP: over})
    shards = read_markers(workspace, "shards")
    if shards:
        yield StageAccount.of("shards", add_counts(shards.values()))


_FILES_SHOWN = 5


def describe_damage(workspace: Workspace) -> list[str]:
    """Describe which source files contain the damaged records and files of the account, those with most first."""
    markers = read_markers(workspace, "pairs")
    lines = []
    for reason in (Reason.DAMAGED_RECORD, Reason.DAMAGED_FILE):
        damage = Counter({m.about or unit: m.counts[reason] for unit, m in markers.items() if m.counts.get(reason)})
        if damage:
            files = ", ".join(f"{name} ({count:,})" for name, count in damage.most_common(_FILES_SHOWN))
            more = f" and {len(damage) - _FILES_SHOWN:,} more files" if len(damage) > _FILES_SHOWN else ""
            lines.append(f"{reason} in {files}{more}")
    return lines
