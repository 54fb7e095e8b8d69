"""The images of docker/: built and started where there is a daemon; else their steps, in a clean environment."""

import fnmatch
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
STARTS = {
    "worker": ["python", "-c", "import pipeline.build, s3fs, gcsfs, apache_beam.runners.dataflow.dataflow_runner"],
    "trainer": ["torchrun", "--help"],
    "spark": ["wit", "--version"],
}
"""A command of each image that shows that it works."""

CHECK_SPARK = "import pyspark, s3fs, gcsfs, pipeline.build"


@dataclass
class Image:
    """What a Dockerfile says, as far as these use it."""

    base: str
    copied: list[tuple[list[str], str]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    entry_point: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Image":
        image = cls("")
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            match word:
                case "FROM":
                    image.base = rest
                case "COPY":
                    *names, target = rest.split()
                    image.copied.append((names, target))
                case "RUN":
                    image.runs.append(rest)
                case "ENTRYPOINT":
                    image.entry_point = json.loads(rest)
        return image


def is_in_context(name: str) -> bool:
    """Return whether .dockerignore leaves a file of the project in the build's context: the last pattern decides."""
    is_there = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!")
            parents = [name, *(str(parent) for parent in Path(name).parents if str(parent) != ".")]
            globs = [bare.removeprefix("**/")] if bare.startswith("**/") else [bare]
            parts = Path(name).parts if bare.startswith("**/") else parents
            if any(fnmatch.fnmatchcase(part, one) for part in parts for one in globs):
                is_there = pattern.startswith("!")
    return is_there


def context_files(names: list[str]) -> list[str]:
    """Return the files that a COPY takes, of those that git knows."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *names], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.splitlines() if is_in_context(name) and (ROOT / name).is_file()]


@pytest.fixture(params=FILES, ids=lambda path: path.name.split(".")[0])
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_every_image_is_tested() -> None:
    assert {path.name.split(".")[0] for path in FILES} == STARTS.keys()


def test_what_is_copied_is_in_the_context(dockerfile: Path) -> None:
    for names, _ in Image.read(dockerfile).copied:
        for name in names:
            assert context_files([name]), f"{dockerfile.name} copies {name}, which .dockerignore leaves out"


def test_nothing_else_is_in_the_context() -> None:
    assert not [
        name for name in ("tests/conftest.py", "docs/spark.md", ".venv/bin/python", "wit.toml") if is_in_context(name)
    ]
    assert not is_in_context("pipeline/__pycache__/build.cpython-311.pyc")


def test_the_versions_are_those_of_the_constraints() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    worker = Image.read(ROOT / "docker/worker.Dockerfile").base
    assert worker == f"apache/beam_python3.11_sdk:{pinned['apache-beam']}"
    for name in ("trainer", "spark"):
        assert Image.read(ROOT / f"docker/{name}.Dockerfile").base.startswith("python:3.11-")


def test_slim_images_have_a_compiler() -> None:
    """pdqhash has no wheels; the clean environment below cannot show it, because this machine has a compiler."""
    for path in FILES:
        image = Image.read(path)
        if "slim" in image.base:
            assert any(run.startswith("apt-get") and " g++ " in run for run in image.runs), path.name


def _daemon_answers() -> bool:
    docker = shutil.which("docker")
    if docker is None:
        return False
    asked = subprocess.run([docker, "info"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return asked.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_starts(dockerfile: Path) -> None:
    if not _daemon_answers():
        pytest.skip("no Docker daemon; the steps are tested in a clean environment")
    name = dockerfile.name.split(".")[0]
    tag = f"wit-test-{name}"
    subprocess.run(["docker", "build", "-f", str(dockerfile), "-t", tag, "."], cwd=ROOT, check=True)
    command = STARTS[name]
    subprocess.run(["docker", "run", "--rm", "--entrypoint", command[0], tag, *command[1:]], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_steps_work_in_a_clean_environment(dockerfile: Path, tmp_path: Path) -> None:
    """The files that are copied, the same `pip install` (by uv, which keeps what it downloads), and the command."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv")
    name, image = dockerfile.name.split(".")[0], Image.read(dockerfile)
    for names, target in image.copied:
        for file in context_files(names):
            place = tmp_path / "files" / (Path(target).name if target.startswith("/") else file)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, place)
    bare = {"PATH": f"{tmp_path / 'venv/bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "PIP_", "SSL_"))}
    kept |= {
        "UV_CACHE_DIR": subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True).stdout.strip()
    }
    (install,) = (run for run in image.runs if run.startswith("pip install"))
    arguments = install.removeprefix("pip install --no-cache-dir ").replace('"', "").split()
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, str(tmp_path / "venv")], env=bare | kept, check=True)
    command = [uv, "pip", "install", "-q", "--python", str(tmp_path / "venv/bin/python"), *arguments]
    subprocess.run(command, cwd=tmp_path / "files", env=bare | kept, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for command in [STARTS[name], *([["python", "-c", CHECK_SPARK]] if name == "spark" else [])]:
        done = subprocess.run(command, cwd=elsewhere, env=bare, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    if name == "spark":
        assert (tmp_path / "venv/bin/wit-beam-boot").is_file()


EXECUTOR = {
    "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@10.0.0.1:7078",
    "SPARK_EXECUTOR_ID": "7",
    "SPARK_EXECUTOR_CORES": "1",
    "SPARK_EXECUTOR_MEMORY": "1024m",
    "SPARK_APPLICATION_ID": "spark-1",
    "SPARK_EXECUTOR_POD_IP": "10.0.0.2",
    "SPARK_EXECUTOR_POD_NAME": "wit-exec-7",
    "SPARK_RESOURCE_PROFILE_ID": "0",
    "SPARK_JAVA_OPT_0": "-Dspark.driver.port=7078",
    "SPARK_JAVA_OPT_1": "-Dnote=two words",
}


def start_executor(tmp_path: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = ["sh", str(ROOT / "docker/spark-executor.sh"), *arguments]
    inherited = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    return subprocess.run(
        command, env=inherited | environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_the_entry_point_starts_an_executor_as_spark_wants_it(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    java.chmod(0o755)
    done = start_executor(tmp_path, "executor", SPARK_HOME="/opt/pyspark", **EXECUTOR)
    words = done.stdout.splitlines()
    assert words[:5] == ["-Dspark.driver.port=7078", "-Dnote=two words", "-Xms1024m", "-Xmx1024m", "-cp"]
    assert words[5] == "/opt/pyspark/jars/*"
    options = dict(zip(words[7::2], words[8::2], strict=True))
    assert options["--executor-id"] == "7"
    assert options["--hostname"] == "10.0.0.2"
    assert options["--driver-url"] == EXECUTOR["SPARK_DRIVER_URL"]


def test_the_entry_point_runs_other_commands(tmp_path: Path) -> None:
    done = start_executor(tmp_path, "echo", "two words", "executor")
    assert done.stdout == "two words executor\n"


@pytest.mark.spark
def test_spark_knows_the_options_of_its_executor(tmp_path: Path) -> None:
    """It gets as far as connecting to its driver, which is not there."""
    found = importlib.util.find_spec("pyspark")  # not imported: other tests put another in its place
    if found is None or found.origin is None or shutil.which("java") is None:
        pytest.skip("needs pyspark and Java")
    environment = EXECUTOR | {"SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@127.0.0.1:1"}
    environment |= {"SPARK_EXECUTOR_POD_IP": "127.0.0.1", "SPARK_LOCAL_IP": "127.0.0.1"}
    environment["PATH"] = os.environ["PATH"]
    environment["SPARK_HOME"] = str(Path(found.origin).parent)
    done = start_executor(tmp_path, "executor", **environment)
    assert done.returncode != 0
    assert not re.search("Unrecognized options|Usage:", done.stdout + done.stderr)
    assert "127.0.0.1:1" in done.stdout + done.stderr
