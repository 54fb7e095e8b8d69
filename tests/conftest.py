"""Settings of the whole suite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# gcsfs asks another API for the kind of each bucket, which emulators do not have.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

# Tests never judge wall times: a busy machine is no bug.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start files with slow tests first: processes that share out files then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _workers_import_the_tests() -> Iterator[None]:
    """Worker processes inherit the environment of the first test that starts any, so every test has the same."""
    patch = pytest.MonkeyPatch()
    # The project first: tests/pipeline would be taken for the package `pipeline`.
    places = [str(folder) for folder in Path(__file__).parents[1::-1]]
    patch.setenv("PYTHONPATH", os.pathsep.join(places), prepend=os.pathsep)
    yield
    patch.undo()
