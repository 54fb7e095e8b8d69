"""The packages import each other one way only, and heavy imports stay where they belong."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "queries": {"queries"},
    "dedup": {"dedup", "queries.normal_form", "queries.parquet_pages", "queries.redact"},
    "pipeline": {"pipeline", "queries", "dedup"},
    "trainer": {
        "trainer",
        "queries.parquet_pages",
        "queries.redact",
        "pipeline.shards",
        "dedup.eval_sets",
        "dedup.copies",
        "dedup.decode",
    },
}
OURS = tuple(ALLOWED)
BEAM_MAY_BE_IMPORTED_IN = (
    "pipeline/allowlist/build.py",
    "pipeline/beam",
    "pipeline/build.py",
    "pipeline/cli",
    "pipeline/engine/run.py",
    "pipeline/stages/balance/scans.py",
)
PIPELINE_UPWARDS = (
    "errors",
    "records",
    "pages",
    "private_folder",
    "paths",
    "config",
    "web",
    "consent",
    "beam",
    "engine",
    "account",
    "project",
    "shards",
    "sources",
    "filters",
    "search",
    "fetching",
    "stages",
    "allowlist",
    "build",
    "demo",
    "cli",
)
"""The modules and folders of pipeline/: each imports only those before it."""
PIPELINE_ROOT = {
    "build",
    "project",
    "records",
    "account",
    "errors",
    "paths",
    "private_folder",
}
NO_SUCH_MODULE = {"utils", "util", "common", "helpers", "misc"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the dotted names a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, allowed: set[str]) -> bool:
    return any(name == a or name.startswith(f"{a}.") for a in allowed)


@pytest.mark.parametrize("package", OURS)
def test_imports_go_one_way(package):
    for path in modules(package):
        for name in imported(path):
            if name.split(".")[0] in OURS:
                partial = any(a.startswith(f"{name}.") for a in ALLOWED[package])  # `from pipeline import shards`
                assert within(name, ALLOWED[package]) or partial, f"{path.relative_to(ROOT)} imports {name}"


def test_beam_stays_at_the_edge():
    for package in OURS:
        for path in modules(package):
            if any(name.split(".")[0] == "apache_beam" for name in imported(path)):
                place = path.relative_to(ROOT)
                assert any(place.is_relative_to(allowed) for allowed in BEAM_MAY_BE_IMPORTED_IN), place


def test_torch_stays_in_the_trainer():
    for package in OURS:
        for path in modules(package):
            if any(name.split(".")[0] in ("torch", "open_clip") for name in imported(path)):
                assert package == "trainer", path


def test_no_import_of_the_pipeline_runs_upwards():
    level = {f"pipeline.{name}": number for number, name in enumerate(PIPELINE_UPWARDS)}
    for path in modules("pipeline"):
        place = path.relative_to(ROOT)
        own = ".".join(place.with_suffix("").parts[:2])
        if place.name in ("__init__.py", "__main__.py") and len(place.parts) == 2:
            continue  # the door to all of them
        assert own in level, f"{place}: give it a place in PIPELINE_UPWARDS"
        for name in imported(path):
            imports = ".".join(name.split(".")[:2])
            if imports in level:
                assert level[imports] <= level[own], f"{place} imports {name}, which comes after it"


def test_candidates_and_fetching_do_not_know_each_other():
    for folder, other in (("fetching", "sources"), ("sources", "fetching")):
        for path in modules(f"pipeline/{folder}"):
            assert not any(within(name, {f"pipeline.{other}"}) for name in imported(path)), path


def test_the_root_of_the_pipeline_holds_its_vocabulary_only():
    at_root = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__", "__main__"}
    assert at_root == PIPELINE_ROOT


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert [path for package in OURS for path in modules(package) if path.stem in NO_SUCH_MODULE] == []
