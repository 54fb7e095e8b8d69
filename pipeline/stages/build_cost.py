"""What a build takes of machines, stage by stage, before it runs: the constants of docs/scale.md."""

from dataclasses import dataclass

IMAGES_PER_CPU_S = 323
"""Requested, checked, shrunk, hashed, in a tar (benchmarks.fetch)."""
DEDUP_CPU_US = 71
"""Of an image, in all steps (benchmarks.dedup_at_scale)."""
SHARDS_CPU_US = 411
"""Of a pair (benchmarks.late_stages)."""
WEB_IMAGE_BYTES = 155_000
"""The mean of images on the web."""
FETCHED_SHARE, KEPT_SHARE = 0.75, 0.5
"""Of the planned pairs: those whose image is there, and those left after duplicates and the cap."""

JOBS = 25
"""Beam pipelines of a build; a cluster that starts machines for each waits for them each time."""


@dataclass(frozen=True)
class StageNeeds:
    """What a process of a stage takes at most, in MiB (None: `run.memory_bytes`), and what it connects to."""

    mib: int | None
    network: str


NEEDS = {
    "pairs": StageNeeds(583, "sources, workspace"),
    "plan": StageNeeds(None, "workspace"),
    "fetched": StageNeeds(2_048, "the web (ports 80 and 443), DNS, workspace"),
    "dedup": StageNeeds(None, "workspace"),
    "shards": StageNeeds(600, "workspace"),
    "report": StageNeeds(600, "workspace"),
}


@dataclass(frozen=True)
class Effort:
    """What the stages after the plan take: CPU hours, gigabytes from the web."""

    cpu_h: float
    web_gb: float

    @classmethod
    def of(cls, planned: int) -> "Effort":
        """Return that of so many planned pairs."""
        cpu_us = 1e6 / IMAGES_PER_CPU_S + FETCHED_SHARE * DEDUP_CPU_US + KEPT_SHARE * SHARDS_CPU_US
        return cls(planned * cpu_us / 3.6e9, planned * FETCHED_SHARE * WEB_IMAGE_BYTES / 1e9)
