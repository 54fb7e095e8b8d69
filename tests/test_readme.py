"""Every command and block of README.md works: run where that takes seconds, else checked as far as said here.

- `make` targets are looked up in the Makefile: running one would set up a machine.
- `pip install` is checked for the extras it names: it would use the network.
- `wit queries import`, `wit build` and `wit status` are run on the recorded web, in the order of the page, and then the
  commands for a finished set, with `--from-record` where they would send requests.
- other `wit` commands are parsed; their Beam options are checked as a build does before it starts. No cluster is used.
- TOML blocks are loaded as configs; nothing in them is fetched.
- the block that lists outputs is compared with a finished build.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from support.recorded_web import make_project

from pipeline.beam.options import parse_beam_options
from pipeline.cli.main import _parse, main
from pipeline.config import load_config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
RUN = ("queries", "build", "status")
FINISHED = ("verify", "why", "card", "consent", "overlap")


def commands() -> list[str]:
    """Return every command of the page: the lines of its shell blocks, and code in its sentences that is one."""
    lines = [line.partition("#")[0].strip() for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
    text = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    alternatives = re.findall(r"or: (pip [^\n]+)", README)
    inline = [
        code for code in re.findall(r"`([^`\n]+)`", text) if re.match(r"(\.venv/bin/)?(wit|make|torchrun) ", code)
    ]
    return [line for line in [*lines, *alternatives, *inline] if line]


def words(command: str) -> list[str]:
    first, *rest = shlex.split(command)
    return [Path(first).name, *rest]


def test_the_page_has_commands_and_no_block_of_an_unknown_kind() -> None:
    assert len(commands()) > 10
    assert {kind for kind, _ in BLOCKS} <= {"", "sh", "toml", "python"}


@pytest.mark.parametrize("command", commands())
def test_every_command_is_one(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.beam.spark.settings._job_server", lambda given: [])  # looks for Java and pyspark
    program, *arguments = words(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert arguments[0] == "install"
        named = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", arguments[1])
        assert named is not None
        assert {name for name in (named[1] or "").split(",") if name} <= set(extras)
    elif program == "torchrun":
        assert arguments[:2] == ["-m", "trainer"]
        assert (ROOT / "trainer/__main__.py").is_file()
    else:
        assert program == "wit"
        args, beam = _parse(arguments)
        assert callable(args.func)
        parse_beam_options(beam)


@pytest.mark.parametrize("text", [block for kind, block in BLOCKS if kind == "toml"])
def test_every_config_is_accepted(tmp_path: Path, text: str) -> None:
    (tmp_path / "wit.toml").write_text(text)
    config = load_config(tmp_path / "wit.toml")
    assert config.sources


def _lines_of(command: str) -> list[list[str]]:
    """Return the arguments of the `wit` commands in the one shell block with this command."""
    (block,) = [block for kind, block in BLOCKS if kind == "sh" and f"wit {command} " in block]
    return [words(line.partition("#")[0])[1:] for line in block.splitlines() if line.startswith("wit ")]


def test_the_commands_for_a_set_make_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    (tmp_path / "queries.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    run = _lines_of("queries")
    assert [arguments[0] for arguments in run] == list(RUN)
    for arguments in run:
        assert main(arguments) == 0, arguments
    assert "shards" in capsys.readouterr().out
    (listing,) = [block for kind, block in BLOCKS if kind == "" and block.startswith("shards/")]
    folder = ""
    for line in listing.splitlines():
        folder = line.split("/")[0] if not line.startswith(" ") else folder
        assert (tmp_path / "work" / folder).is_dir()
        for name in re.findall(r"(?<![<\w.])[\w/]+\.(?:tar|parquet|json|html|md)\b", line):
            assert (tmp_path / "work" / folder / name).is_file(), name


def test_the_commands_for_a_finished_set_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["build", "--quiet"]) == 0
    shutil.copytree("evals", "evals/cifar10")
    shutil.copytree("evals/cifar10", "photos")
    commands = _lines_of("verify")
    assert [arguments[0] for arguments in commands] == list(FINISHED)
    expected = ("none damaged", "http://host1.example/pictures/1.jpg", "# Data card", "0 images", "5 of 5 images")
    for arguments, text in zip(commands, expected, strict=True):
        capsys.readouterr()
        assert main([*arguments, *(["--from-record"] if arguments[0] == "consent" else [])]) == 0, arguments
        assert text in capsys.readouterr().out, arguments


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
