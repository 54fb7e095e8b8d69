"""A project: a config file and the folder that its relative paths start at."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError, one_line
from pipeline.paths import resolve_path
from queries.errors import InputError

if TYPE_CHECKING:  # slow to import: pydantic, Arrow
    from pipeline.config import Config
    from pipeline.engine.workspace import Workspace
    from queries.allowlist import Allowlist

STAGES = ("pairs", "plan", "fetched", "dedup", "shards", "report")
"""Each is named after the folder that it fills."""


def code_version() -> str:
    """Return the version of the installed package, "0+unknown" if it is not installed."""
    try:
        return metadata.version("wit-pipeline")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class Project:
    """A config and its folder, at which its relative paths start."""

    config: "Config"
    base_dir: Path

    @classmethod
    def load(cls, path: Path) -> "Project":
        from pipeline.config import load_config

        return cls(load_config(path), path.resolve().parent)

    @cached_property
    def workspace(self) -> "Workspace":
        from pipeline.engine.workspace import Workspace

        try:
            workspace = Workspace(self.resolve(self.config.workspace))
            if not workspace.is_local:
                with suppress(FileNotFoundError):
                    workspace.fs.ls(workspace.path(""))
        except Exception as error:  # any error of a store: missing package, credentials or network
            raise ConfigError(f"workspace = {self.config.workspace!r}: {one_line(error)}") from None
        return workspace

    def resolve(self, path: str) -> str:
        """Return a path of the config; relative paths start at the config file's folder, URLs stay unchanged."""
        return resolve_path(path, self.base_dir)

    @property
    def allowlist_path(self) -> str:
        """The file of the queries; of several lists, the one in the workspace that they are merged into."""
        paths = self.config.allowlist.paths
        return self.resolve(paths[0]) if len(paths) == 1 else f"{self.workspace.root}/allowlist/merged.parquet"

    def load_allowlist(self) -> "Allowlist":
        from queries.allowlist import Allowlist, import_allowlist

        try:
            if len(self.config.allowlist.paths) > 1:
                paths = [self.resolve(path) for path in self.config.allowlist.paths]
                self.workspace.make_folder("allowlist")
                import_allowlist(paths, self.allowlist_path)
            return Allowlist.load(self.allowlist_path)
        except (OSError, InputError) as error:
            raise ConfigError(f"allowlist.path = {self.config.allowlist.path!r}: {error}") from None
