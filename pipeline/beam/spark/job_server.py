"""Find the Spark job server.

Beam's client passes every pipeline to a Java program, the job server, that communicates with Spark. Its official build
is one big jar (`--spark_job_server_jar`). Without it we use two jars: Beam's runner with its libraries, built once by
`python -m pipeline.beam.spark.build_job_server`, and a tiny one, written here, whose class path is that jar plus the
jars of the installed pyspark, and Hadoop's configuration if the environment names it. So driver and executors always
run the same Spark.
"""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

from pipeline.errors import ConfigError

BEAM_VERSION = "2.70.0"  # the newest beam-runners-spark-3 that Maven Central serves; see pom.xml
BEAM_JAR = f"beam-spark-{BEAM_VERSION}.jar"
_MAIN_CLASS = "org.apache.beam.runners.spark.SparkJobServerDriver"


def cache_folder() -> Path:
    """Return the folder of the built jars: `wit/spark` in the user's cache (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else Path.home() / ".cache", "wit", "spark")


def cached_beam_jar() -> Path:
    """Return the built jar.

    Raises:
        ConfigError: it has not been built yet.
    """
    jar = cache_folder() / BEAM_JAR
    if not jar.is_file():
        raise ConfigError(
            f"no Spark job server at {jar}: build it once with `python -m pipeline.beam.spark.build_job_server`, "
            "or use Beam's official jar with --spark_job_server_jar=FILE"
        )
    return jar


def java(launcher: str = "java") -> str:
    """Return the Java launcher: the given one, that of $JAVA_HOME, or the one on the path.

    Raises:
        ConfigError: it does not exist.
    """
    java_home = os.environ.get("JAVA_HOME")
    if launcher == "java" and java_home:
        launcher = os.path.join(java_home, "bin", "java")
    if shutil.which(launcher) is None:
        raise ConfigError(f"Spark needs Java 11 or 17, but {launcher!r} was not found: install it or set JAVA_HOME")
    return launcher


def pyspark_jars() -> list[Path]:
    """Return the jars of the installed pyspark.

    Raises:
        ConfigError: pyspark is not installed.
    """
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise ConfigError("SparkRunner needs pyspark: run pip install '.[spark]' in the project's folder")
    return sorted(Path(spec.origin).parent.joinpath("jars").glob("*.jar"))


def runnable_jar() -> Path:
    """Return a jar to start with `java -jar`; it is written again if the path of Beam's jar, of pyspark or of Hadoop's
    configuration has changed.

    Raises:
        ConfigError: the built jar or pyspark is missing.
    """
    class_path = " ".join([jar.resolve().as_uri() for jar in [cached_beam_jar(), *pyspark_jars()]] + _hadoop_configs())
    digest = hashlib.sha256(class_path.encode()).hexdigest()[:12]
    jar = cache_folder() / f"job-server-{digest}.jar"
    if not jar.is_file():
        temporary = jar.with_suffix(f".{os.getpid()}.tmp")
        with zipfile.ZipFile(temporary, "w") as archive:
            archive.writestr("META-INF/MANIFEST.MF", _manifest({"Main-Class": _MAIN_CLASS, "Class-Path": class_path}))
        temporary.replace(jar)
    return jar


def _hadoop_configs() -> list[str]:
    """Return the folders of yarn-site.xml and core-site.xml as URLs: `java -jar` ignores CLASSPATH."""
    named = [os.environ.get(name) for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR")]
    return [f"{Path(folder).resolve().as_uri()}/" for folder in dict.fromkeys(named) if folder]


def _manifest(entries: dict[str, str]) -> bytes:
    """Write a jar manifest: no line above 72 bytes, continuations start with a space (JAR file specification)."""
    lines = ["Manifest-Version: 1.0"]
    for name, value in entries.items():
        entry = f"{name}: {value}"
        lines.append(entry[:70])
        lines += [" " + entry[start : start + 69] for start in range(70, len(entry), 69)]
    return "".join(line + "\r\n" for line in [*lines, ""]).encode("ascii")
