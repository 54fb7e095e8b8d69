"""Build Beam's Spark job server with Maven, once per user: `python -m pipeline.beam.spark.build_job_server`.

The first time it takes three minutes; it leaves one jar of 100 MB in the user's cache. See job_server.py.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.beam.spark.job_server import BEAM_JAR, cache_folder, java
from pipeline.errors import ConfigError, UserError

_POM = Path(__file__).with_name("pom.xml")
_JAVA_VERSIONS = (11, 17)  # what Spark 3.5 runs on, above 8


def build_job_server(*, again: bool = False) -> Path:
    """Return the built jar; build it if it does not exist, or if `again` is set.

    Raises:
        ConfigError: Java or Maven is missing, or Spark 3.5 does not support the version of Java.
        UserError: the build failed; the message has Maven's error.
    """
    jar = cache_folder() / BEAM_JAR
    if jar.is_file() and not again:
        return jar
    check_tools()
    print("building the Spark job server; the first time takes about three minutes", file=sys.stderr)
    jar.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wit-job-server-") as folder:
        built = _package(Path(folder))
        temporary = jar.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(built, temporary)
        temporary.replace(jar)
    return jar


def check_tools() -> None:
    """Raise ConfigError unless a supported Java and Maven are installed."""
    version = java_version()
    if version not in _JAVA_VERSIONS:
        raise ConfigError(f"Spark 3.5 needs Java 11 or 17, not {version}: set JAVA_HOME to one of them")
    if shutil.which("mvn") is None:
        raise ConfigError(
            "Maven is not installed: install it (`apt-get install maven`, `brew install maven`), "
            "or use Beam's official jar with --spark_job_server_jar=FILE"
        )


def java_version() -> int:
    """Return the major version of the Java in use.

    Raises:
        ConfigError: Java is not installed, or its version is unknown.
    """
    launcher = java()
    result = subprocess.run([launcher, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr)
    if match is None:
        raise ConfigError(f"{launcher} -version prints no version number: install Java 11 or 17")
    return int(match[1])


def _package(folder: Path) -> Path:
    shutil.copyfile(_POM, folder / "pom.xml")
    maven = subprocess.run(
        ["mvn", "--batch-mode", "--no-transfer-progress", "-Dstyle.color=never", "package"],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if maven.returncode:
        errors = [line.removeprefix("[ERROR] ") for line in maven.stdout.splitlines() if line.startswith("[ERROR]")]
        raise UserError(f"Maven could not build the Spark job server: {(errors or ['no message'])[0]}")
    return folder / "target" / BEAM_JAR


def main(argv: Sequence[str] | None = None) -> int:
    """Build the jar and print its path."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.beam.spark.build_job_server", description=__doc__)
    parser.add_argument("--again", action="store_true", help="build even if the jar exists")
    args = parser.parse_args(argv)
    try:
        print(build_job_server(again=args.again))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
