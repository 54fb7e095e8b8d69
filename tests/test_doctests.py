"""The examples in docstrings and in docs/ are true."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("queries", "dedup", "pipeline", "trainer")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_docstrings(module: str) -> None:
    results = doctest.testmod(import_module(module), verbose=False)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_pages(page: Path) -> None:
    results = doctest.testfile(str(page), module_relative=False, verbose=False)
    assert results.attempted > 0
    assert results.failed == 0


def test_there_are_examples() -> None:
    assert "queries.normal_form" in MODULES
    assert "api.md" in [page.name for page in PAGES]
