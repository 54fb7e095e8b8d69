"""What the wheel says and holds."""

import re
import tomllib
from importlib.metadata import files, metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_licence_is_declared_and_installed() -> None:
    assert metadata("wit-pipeline")["License-Expression"] == "Apache-2.0"
    (licence,) = [file for file in files("wit-pipeline") or [] if file.name == "LICENSE"]
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in licence.read_text()


def test_every_kind_of_file_in_the_packages_goes_into_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    for package in ("queries", "dedup", "pipeline", "trainer"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(path.match(pattern) for pattern in patterns), path


def test_the_changelog_has_the_version_and_room_for_the_next() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert changelog.index("\n## Unreleased\n") < changelog.index(f"\n## {version} (")


def test_messages_name_extras_in_one_way_and_only_those_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = []
    for package in ("queries", "dedup", "pipeline", "trainer"):
        for path in (ROOT / package).rglob("*.py"):
            for _, rest in re.findall(r"(pip install )(.*)", path.read_text(encoding="utf-8")):
                named = re.match(r"'\.\[(\w+)\]' in the project's folder", rest)
                assert named, (path, rest)
                found.append(named[1])
    assert found
    assert set(found) <= set(extras)
