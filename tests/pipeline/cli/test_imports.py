"""What `wit --help` and a refused config do not wait for: imports, named, so that no clock decides."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

HEAVY = {"aiohttp", "apache_beam", "cv2", "fsspec", "jinja2", "lxml", "numpy", "open_clip", "PIL", "pyarrow", "rich"}
HEAVY |= {"scipy", "torch"}
FOR_CONFIGS = {"pydantic"}

SCRIPT = """
import json, sys
from pipeline.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code or 0
print(json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""


def run(*arguments: str) -> tuple[int, set[str], str]:
    """Run a command in a new process; return its exit code, the top-level modules it imported, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    printed, last = done.stdout.rstrip("\n").rpartition("\n")[::2]
    code, imported = json.loads(last)
    return code, set(imported), printed + done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["build", "--help"], ["status", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code, imported, printed = run(*arguments)
    assert code == 0
    assert printed.startswith("usage: wit")
    assert imported & (HEAVY | FOR_CONFIGS) == set()


def test_the_version_is_that_of_the_installed_package() -> None:
    code, imported, printed = run("--version")
    assert (code, printed) == (0, f"wit {version('wit-pipeline')}")
    assert imported & (HEAVY | FOR_CONFIGS) == set()


@pytest.mark.parametrize("command", ["build", "status", "report"])
def test_a_config_is_refused_before_anything_heavy_is_imported(tmp_path: Path, command: str) -> None:
    config = tmp_path / "wit.toml"
    config.write_text("sead = 3\n")
    code, imported, printed = run(command, "-c", str(config))
    assert code == 2
    assert "unknown key sead; did you mean seed?" in printed or "missing key" in printed
    assert imported & HEAVY == set()


def test_the_list_of_heavy_modules_is_true() -> None:
    """A name that nothing imports would hold nothing."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import pipeline.build, pipeline.fetching.fetcher, trainer.train, sys; print(*sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert {name.split(".")[0] for name in done.stdout.split()} >= HEAVY | FOR_CONFIGS
