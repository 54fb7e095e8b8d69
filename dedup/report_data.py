"""What the overlap report says: the account, the balance, each evaluation set, and the evidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dedup import charts
from dedup.captions import CaptionSummary
from dedup.control import Control
from dedup.eval_sets import EvalSet, find_set, registered
from dedup.measure import Recall
from dedup.overlap import OverlapSummary
from dedup.reviews import Judged
from dedup.statistics import Proportion, SplitAccuracy, contamination


@dataclass(frozen=True)
class StageFlow:
    """Rows in, rows kept, and rows dropped by reason, of one stage: inputs = kept + the sum of reasons."""

    stage: str
    inputs: int
    kept: int
    reasons: Mapping[str, int]


@dataclass(frozen=True)
class Balance:
    """How many pairs each query matches before and after balancing, as histograms on a log scale."""

    cap: int
    queries: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    without_pairs: int
    at_cap: int
    more_than_cap: int = 0  # queries that match more than `cap` of the kept pairs, some selected by other queries
    most_matched: int = 0
    counted_pairs: int = 0  # the pairs that the previous two fields are about

    @classmethod
    def of(
        cls,
        before: np.ndarray,
        after: np.ndarray,
        cap: int,
        contained: np.ndarray | None = None,
        counted_pairs: int = 0,
    ) -> "Balance":
        """Summarise vectors of counts, one number per query; `after` never exceeds `cap`.

        `contained` is how many of `counted_pairs` kept pairs each query matches, regardless of which query selected
        them.
        """
        histograms = charts.count_buckets(before), charts.count_buckets(after)
        contained = np.zeros(0, np.int64) if contained is None else contained
        more, most = int((contained > cap).sum()), int(contained.max(initial=0))
        at_cap = int((after >= cap).sum())
        return cls(cap, len(before), *histograms, int((after == 0).sum()), at_cap, more, most, counted_pairs)


@dataclass(frozen=True)
class QueryRow:
    """The pairs of one query: found in the pool, planned to be fetched, and kept in the final shards."""

    query: str
    found: int
    planned: int
    kept: int

    @property
    def not_kept(self) -> int:
        """Planned pairs that are not in the shards: dead links, duplicates, and the slack above the cap."""
        return self.planned - self.kept


@dataclass(frozen=True)
class Evidence:
    """An evaluation image and its copy in the final shards; thumbnails are JPEG bytes, None if missing."""

    eval_id: str
    label: str | None
    uid: str
    distance: int
    view: str
    degree: str
    edit: str
    caption: str
    url: str
    page_url: str
    eval_jpeg: bytes | None
    image_jpeg: bytes | None


@dataclass(frozen=True)
class ModelAccuracy:
    """The accuracy of one model on a set, with and without the examples that are in the dataset."""

    model: str
    accuracy: SplitAccuracy

    @property
    def is_tested(self) -> bool:
        """Whether there are examples both inside and outside the overlap to compare."""
        return self.accuracy.overlap.total > 0 and self.accuracy.clean.total > 0


@dataclass(frozen=True)
class EvalReport:
    """The measurements of one evaluation set.

    `indexed` counts its readable images, `left_out` the others by reason; `flat` is how many of the indexed ones have a
    PDQ quality below `min_quality`, so that only copies with equal bytes count. `accuracies` has each model once, in
    any order.
    """

    name: str
    indexed: int
    summary: OverlapSummary
    max_distance_bits: int
    evidence: tuple[Evidence, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    flat: int = 0
    accuracies: tuple[ModelAccuracy, ...] = ()
    evidence_limit: int = 24  # pairs that the evidence was picked up to
    judged: Judged | None = None  # what people said of the evidence
    recall: Recall | None = None  # of edits of the set's own images, planted in this run
    min_probability: float | None = None  # of an edited copy; None without a copy detector
    captions: CaptionSummary | None = None  # None: the set has no captions

    @property
    def known(self) -> EvalSet | None:
        return find_set(self.name)

    @property
    def title(self) -> str:
        return self.known.title if self.known else self.name

    @property
    def share(self) -> Proportion:
        return contamination(self.summary.overlap, self.indexed)

    @property
    def corrected(self) -> tuple[float, float, float] | None:
        """Return the fraction at full recall and precision with its interval; None if recall was not measured.

        Its ends are those of all intervals at their least favourable: found x precision / recall.
        """
        if self.recall is None:
            return None
        precision = self.judged.precision if self.judged else None
        return self.recall.corrected(self.share, precision)


@dataclass(frozen=True)
class ReportData:
    """The content of the report. `facts` are shown unchanged: ("Seed", "7")."""

    facts: tuple[tuple[str, str], ...]
    stages: tuple[StageFlow, ...]
    evals: tuple[EvalReport, ...]
    min_quality: int
    balance: Balance | None = None
    head: tuple[QueryRow, ...] = ()
    tail: tuple[QueryRow, ...] = ()
    queries: str = ""  # all of them, for the page's search: `query_search.encode_queries`
    detector: bool = False  # whether a copy detector searched for edited copies
    control: Control | None = None
    refused: Mapping[str, int] | None = None  # pairs by the opt-out signal or block list that excluded them
    pages: tuple[tuple[str, str], ...] = ()  # further files of the report beside this page, and what they show

    @property
    def is_build(self) -> bool:
        """Whether this is the report of a build; if not, two sets were compared."""
        return bool(self.stages)

    @property
    def not_measured(self) -> tuple[EvalSet, ...]:
        """The registered sets that are not among `evals`."""
        measured = {report.name for report in self.evals}
        return tuple(known for known in registered() if known.name not in measured)
