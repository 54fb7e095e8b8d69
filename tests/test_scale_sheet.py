"""docs/scale.md has the tables that its benchmark computes."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_has_the_computed_tables() -> None:
    command = [sys.executable, "-m", "benchmarks.scale_sheet", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
