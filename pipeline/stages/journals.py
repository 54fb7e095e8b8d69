"""Where the journals of units lie while these are fetched, and when they go."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.engine.units import digest, read_marker
from pipeline.engine.workspace import Workspace
from pipeline.errors import UserError
from pipeline.fetching.journal import Journal
from pipeline.fetching.journal_copies import JournalCopies
from pipeline.private_folder import private_folder

JOURNALS = ".wit/journal"
"""The journals of units that are being fetched: <unit>.journal in a local workspace, copies of them in a store."""


def journal_path(workspace: Workspace, part: str) -> Path:
    """Return the path of a part's journal: on local disk, inside the workspace if that is local.

    Raises:
        UserError: another user owns the temporary folder.
    """
    if workspace.is_local:
        return Path(workspace.path(f"{JOURNALS}/{part}.journal"))
    try:
        return private_folder("wit-journal") / digest(workspace.root) / f"{part}.journal"
    except PermissionError as error:
        raise UserError(f"{error}; set TMPDIR to a folder that only you can write to") from None


@dataclass(frozen=True)
class Journals:
    """The journals of a step's units: until a unit has its marker, a killed process may need its journal."""

    step: str
    finished: dict[str, Path] = field(default_factory=dict)  # units whose files are written -> their journals

    @contextmanager
    def opened(self, workspace: Workspace, unit: str, key: str, scratch: Path) -> Iterator[Journal]:
        """Open the journal of a unit, and remove those of units that have their marker."""
        for name, path in list(self.finished.items()):
            if read_marker(workspace, self.step, name) is not None:
                path.unlink(missing_ok=True)
                self.finished.pop(name, None)
        path, copies = journal_path(workspace, unit), self._copies(workspace, unit, key)
        if copies is not None:
            copies.restore(path)
        with closing(Journal.open(path, key, scratch)) as journal:
            if copies is None or not journal.key:  # an unnamed one: a twin of this unit is at work
                yield journal
            else:
                with copies.kept(journal):
                    yield journal
        self.finished[unit] = path

    def _copies(self, workspace: Workspace, unit: str, key: str) -> JournalCopies | None:
        """Return the copies of a journal in a store; they go with the folder when the stage is done."""
        folder = f"{JOURNALS}/{digest(self.step, key)[:16]}/{unit}"
        return None if workspace.is_local else JournalCopies(workspace, folder)
