"""When the network fails, what parts wrote before anybody noticed is withdrawn, and nothing else."""

import pytest

from pipeline.engine.units import Unit, UnitOutput, read_markers, write_marker
from pipeline.engine.workspace import Workspace
from pipeline.records import Reason
from pipeline.stages import fetched


def mark(workspace: Workspace, name: str, counts: dict[str, int], step: str = "fetched") -> None:
    write_marker(workspace, step, Unit(name, "web-x-plan", None), UnitOutput(workspace), counts)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(str(tmp_path))


def test_only_parts_without_any_response_are_withdrawn(workspace):
    mark(workspace, "dns", {"inputs": 9, "kept": 0, Reason.DNS_FAILED: 9})
    mark(
        workspace,
        "mixed",
        {"inputs": 9, "kept": 0, Reason.TIMEOUT: 4, Reason.CONNECT_FAILED: 4, Reason.ROBOTS_UNREACHABLE: 1},
    )
    mark(workspace, "refused", {"inputs": 9, "kept": 0, Reason.DNS_FAILED: 8, Reason.HTTP_NOT_FOUND: 1})
    mark(workspace, "kept", {"inputs": 9, "kept": 1, Reason.DNS_FAILED: 8})
    mark(workspace, "empty", {"inputs": 0, "kept": 0})
    mark(workspace, "other", {"inputs": 9, "kept": 0, Reason.DNS_FAILED: 9}, step="crawl")
    fetched._withdraw_silent(workspace, "fetched")
    assert set(read_markers(workspace, "fetched")) == {"refused", "kept", "empty"}
    assert set(read_markers(workspace, "crawl")) == {"other"}
