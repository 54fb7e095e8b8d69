"""What every table of the configuration is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from queries.redact import redact

Count = Annotated[int, Field(ge=1, lt=2**31)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Table(BaseModel):
    """A TOML table: frozen, no unknown keys, no silent conversion ("4" is not 4), no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def public_path(path: str) -> str:
    """Return a path as it may be published: without secrets, and of an absolute local one only the last part."""
    is_local = "://" not in path or path.startswith("file://")
    return path.rstrip("/").rpartition("/")[2] if is_local and path.startswith(("/", "~", "file://")) else redact(path)
