"""Building the job server, with a Java and a Maven that only pretend."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.beam.spark import job_server
from pipeline.beam.spark.build_job_server import build_job_server, main
from pipeline.errors import ConfigError, UserError

JAVA = "echo 'openjdk version \"{version}\" 2025-04-15' >&2"
MAVEN = "mkdir -p target && cp pom.xml target/{jar}"


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a function that puts a shell script on the path, in front of what every system has."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)

    def which(name: str) -> str | None:
        path = tmp_path / "bin" / name
        return str(path) if path.is_file() else None

    monkeypatch.setattr("shutil.which", which)

    def add(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return add


@pytest.mark.parametrize("version", ["17.0.15", "11.0.2"])
def test_the_jar_lands_in_the_cache_once(tool, tmp_path, version, capsys):
    tool("java", JAVA.format(version=version))
    tool("mvn", MAVEN.format(jar=job_server.BEAM_JAR))
    jar = build_job_server()
    assert jar == tmp_path / "cache/wit/spark" / job_server.BEAM_JAR
    assert [path.name for path in jar.parent.iterdir()] == [job_server.BEAM_JAR]
    tool("mvn", "exit 1")
    assert build_job_server() == jar
    assert main([]) == 0
    assert capsys.readouterr().out == f"{jar}\n"


@pytest.mark.parametrize("version", ["1.8.0_392", "21.0.1"])
def test_a_java_that_spark_does_not_run_on(tool, version):
    tool("java", JAVA.format(version=version))
    tool("mvn", MAVEN.format(jar=job_server.BEAM_JAR))
    with pytest.raises(ConfigError, match=r"Spark 3.5 needs Java 11 or 17, not (8|21): set JAVA_HOME"):
        build_job_server()


def test_no_java(tool, capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Spark needs Java 11 or 17, but 'java' was not found")


def test_no_maven(tool, capsys):
    tool("java", JAVA.format(version="17.0.1"))
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("Maven is not installed: install it")


def test_a_build_that_fails_says_what_maven_says_first(tool):
    tool("java", JAVA.format(version="17.0.1"))
    tool("mvn", "echo '[INFO] Scanning'; echo '[ERROR] Could not resolve x:y:1'; echo '[ERROR] Help'; exit 1")
    with pytest.raises(UserError, match=r"Maven could not build the Spark job server: Could not resolve x:y:1$"):
        build_job_server()


def test_a_build_that_fails_leaves_the_old_jar(tool):
    tool("java", JAVA.format(version="17.0.1"))
    tool("mvn", MAVEN.format(jar=job_server.BEAM_JAR))
    jar = build_job_server()
    tool("mvn", "exit 1")
    with pytest.raises(UserError):
        build_job_server(again=True)
    assert jar.is_file()
