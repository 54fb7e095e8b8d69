"""`[[evals]]` of wit.toml: one evaluation set to measure overlap with, and to score models on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from dedup.eval_sets.registry import Kind


class EvalSetConfig(BaseModel):
    """One table; frozen, no unknown keys, no silent conversion ("4" is not 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    kind: Kind
    path: str
    image: str = "image"  # parquet: the column of encoded image bytes (or the HF struct with a `bytes` field)
    label: str | None = None  # parquet: the column of class names; webdataset: the field of the json
    caption: str | None = None  # parquet: the column of captions; webdataset: a field of the json, or "txt"
    max_distance_bits: Annotated[int, Field(ge=0, le=31)] | None = None  # overrides dedup.eval_max_distance_bits
    min_probability: Annotated[float, Field(ge=0.5, le=1)] | None = None  # of an edited copy, for sets of look-alikes
