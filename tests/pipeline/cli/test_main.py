"""The command a user types: exit codes, one-line errors, no traceback."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from pipeline.beam.failures import user_error
from pipeline.cli.main import main
from pipeline.errors import EXIT_CODES, NOT_WHOLE, BusyError, ConfigError, NetworkError, ShortageError, UserError
from queries.allowlist import import_allowlist


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("dog\ncat\n")
    import_allowlist(str(tmp_path / "words.txt"), str(tmp_path / "queries.parquet"))
    pq.write_table(pa.table({"url": ["http://a.example/1.jpg"], "caption": ["a dog"]}), tmp_path / "table.parquet")
    config = tmp_path / "wit.toml"
    config.write_text(
        'workspace = "work"\n[allowlist]\npath = "queries.parquet"\n'
        '[[sources]]\nkind = "url-table"\npaths = ["table.parquet"]\n[fetch]\nnetwork = false\nparts = 2\n'
    )
    return config


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse's own exits
        code = int(stop.code or 0)
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, out.out, out.err


def test_a_build_ends_with_the_account(project, capsys):
    code, out, _ = run(capsys, "build", "-c", str(project), "--quiet")
    assert code == 0
    assert "not_in_archives" in out
    code, out, _ = run(capsys, "status", "-c", str(project))
    assert code == 0
    assert "shards" in out


def test_a_stage_run_alone_answers_for_itself(project, capsys):
    run(capsys, "build", "-c", str(project), "--quiet")
    table = pa.table({"url": ["http://a.example/1.jpg", "http://a.example/2.jpg"], "caption": ["a dog", "a cat"]})
    pq.write_table(table, project.parent / "table.parquet")
    code, out, _ = run(capsys, "build", "-c", str(project), "--quiet", "--to", "plan")
    assert code == 0
    assert "fetched" not in out
    code, _, err = run(capsys, "status", "-c", str(project))
    assert code == 6
    assert "run `wit build`" in err
    assert run(capsys, "build", "-c", str(project), "--quiet")[0] == 0
    assert run(capsys, "status", "-c", str(project))[0] == 0


def test_status_before_anything_is_built(project, capsys):
    assert run(capsys, "status", "-c", str(project)) == (0, "nothing has been built yet: run `wit build`\n", "")


def test_a_report_needs_a_finished_build(project, capsys):
    code, _, err = run(capsys, "report", "-c", str(project))
    assert code == 1
    assert "run `wit build` first" in err


def test_an_account_that_does_not_close_is_an_error(project, capsys):
    run(capsys, "build", "-c", str(project), "--quiet", "--to", "pairs")
    (marker,) = (project.parent / "work/.wit/pairs").glob("*.json")
    marker.write_text(marker.read_text().replace('"inputs": 1', '"inputs": 2'))
    code, _, err = run(capsys, "status", "-c", str(project))
    assert code == 6
    assert "1 rows are neither kept nor dropped" in err


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("queries.parquet", "other.parquet"), "allowlist.path = 'other.parquet'"),
        (("table.parquet", "missing-*.parquet"), "missing-*.parquet"),
        (('kind = "url-table"', 'kind = "url-table"\ncaption = "text"'), "'text'"),
        (("url-table", "urls"), "sources[0].kind = 'urls'"),
        (("network = false", ""), "fetch.contact"),
    ],
)
def test_what_is_wrong_is_one_line(project, capsys, change, line):
    project.write_text(project.read_text().replace(*change))
    code, _, err = run(capsys, "build", "-c", str(project), "--quiet")
    assert code in (1, 2)
    assert line in err
    assert err.startswith("wit: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("kind", "path"), [("parquet", "evals"), ("folder", "absent"), ("webdataset", "evals/*.tar")])
def test_an_evaluation_set_that_is_none_is_told_before_anything_is_built(project, capsys, kind, path):
    (project.parent / "evals").mkdir()
    (project.parent / "evals/a.png").touch()
    project.write_text(project.read_text() + f'[[evals]]\nname = "shapes"\nkind = "{kind}"\npath = "{path}"\n')
    code, _, err = run(capsys, "build", "-c", str(project), "--quiet")
    assert code == 2
    assert err.startswith("wit: evals: shapes: ")
    assert err.count("\n") == 1
    assert not (project.parent / "work").exists()


@pytest.mark.parametrize("workspace", ["wit.toml/work", "/proc/work"])
def test_a_workspace_that_cannot_be_written_is_named(project, capsys, workspace):
    project.write_text(project.read_text().replace('workspace = "work"', f'workspace = "{workspace}"'))
    code, _, err = run(capsys, "build", "-c", str(project), "--quiet")
    assert code == 2
    assert "cannot write to workspace" in err
    assert err.count("\n") == 1


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no such file"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    S3FileSystem.clear_instance_cache()  # an instance keeps the credentials it was made with
    yield
    S3FileSystem.clear_instance_cache()


STORES = [("foo://a/b", "Protocol not known: foo"), ("s3://bucket/b", "Unable to locate credentials")]
STORES += [("abfs://a/b", "adlfs"), ("https://127.0.0.1:1/b", "127.0.0.1:1")]


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize(("url", "line"), STORES)
@pytest.mark.parametrize(
    ("old", "key"),
    [
        ('workspace = "work"', "workspace"),
        ('path = "queries.parquet"', "allowlist.path"),
        ('paths = ["table.parquet"]', "sources.paths"),
    ],
)
def test_a_store_that_cannot_be_asked_is_one_line(project, capsys, url, line, old, key):
    new = f'{old.split(" = ")[0]} = ["{url}"]' if "[" in old else f'{old.split(" = ")[0]} = "{url}"'
    project.write_text(project.read_text().replace(old, new))
    for command in ("build", "status") if key == "workspace" else ("build",):
        code, _, err = run(capsys, command, "-c", str(project))
        assert (code, err.count("\n")) == (2, 1), err
        assert err.startswith(f"wit: {key}")
        assert line in err
        assert url in err


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize(("url", "line"), STORES)
def test_lists_in_a_store_that_cannot_be_asked_are_one_line(project, capsys, url, line):
    words = str(project.parent / "words.txt")
    for arguments in ((f"{url}.txt", "--out", str(project.parent / "q.parquet")), (words, "--out", f"{url}.parquet")):
        code, _, err = run(capsys, "queries", "import", *arguments)
        assert (code, err.count("\n")) == (1, 1), err
        assert line in err
        assert url in err


def test_a_full_disk_is_one_line(project, capsys, monkeypatch):
    run(capsys, "build", "-c", str(project), "--quiet")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "work/report/index.html")

    monkeypatch.setattr("pipeline.stages.report.write_reports", full)
    assert run(capsys, "report", "-c", str(project)) == (
        3,
        "",
        "wit: [Errno 28] No space left on device: 'work/report/index.html': free space and run again; finished "
        "work is kept\n",
    )


@pytest.mark.parametrize("kind", [KeyError, ValueError, TypeError, RuntimeError])
def test_bugs_keep_their_traceback(project, monkeypatch, kind):
    def wrong(*_: object, **__: object) -> None:
        raise kind("nobody thought of this")

    for module, arguments in (
        ("pipeline.stages.report.write_reports", ("report", "-c", str(project))),
        ("pipeline.cli.queries.import_allowlist", ("queries", "import", str(project), "--out", "q.parquet")),
        (
            "dedup.eval_sets.index.read_examples",
            ("evals", "index", "a", "--kind", "folder", "--path", ".", "--out", "o"),
        ),
    ):
        monkeypatch.setattr(module, wrong)
        with pytest.raises(kind):
            main(list(arguments))


def test_an_empty_set_is_no_success_without_a_word(project, capsys):
    (project.parent / "other.txt").write_text("zebra\n")
    import_allowlist(str(project.parent / "other.txt"), str(project.parent / "queries.parquet"))
    code, _, err = run(capsys, "build", "-c", str(project), "--quiet")
    assert code == 0
    assert err == "wit: the dataset is empty: pairs kept 0 of 1 rows (no_match 1)\n"


@pytest.mark.parametrize("options", [("--direct_num_wrkers=2",), ("--", "--nonsense"), ("--runner", "NoRunner")])
def test_misspelt_beam_options_are_refused(project, capsys, options):
    code, _, err = run(capsys, "build", "-c", str(project), "--quiet", *options)
    assert code == 2
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("status", "--nonsense"), ("build", "--to", "moon"), ("bild",), ()])
def test_usage_errors(capsys, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "usage: wit" in err


def test_two_builds_at_once_are_refused(project, capsys):
    import fcntl

    lock = project.parent / "work/.wit/lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = run(capsys, "build", "-c", str(project), "--quiet")
    assert code == 5
    assert "another build is running" in err


def test_the_exit_codes_of_the_help_are_those_of_the_docs_and_the_errors(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    docs = (Path(__file__).parents[3] / "docs/configuration.md").read_text()
    for row in EXIT_CODES:
        assert f"| {' | '.join(row)} |" in docs
        assert all(cell in out for cell in row)
    kinds = {UserError: 1, ConfigError: 2, ShortageError: 3, NetworkError: 4, BusyError: 5}
    assert {kind: kind.exit_code for kind in kinds} == kinds
    assert NOT_WHOLE == 6


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/work/a"), 3),
        (OSError(errno.EMFILE, "Too many open files"), 3),
        (OSError(errno.ECONNREFUSED, "Connection refused"), 4),
        (OSError("An error occurred (SlowDown) when calling PutObject"), 4),
        (OSError(errno.EACCES, "Permission denied", "/work/a"), 1),
        (BusyError("another build"), 5),
    ],
)
def test_a_failure_has_the_code_that_says_whether_to_run_again(project, capsys, monkeypatch, error, code):
    def fail(_):
        raise error

    monkeypatch.setattr("pipeline.cli.status._status", fail)
    assert run(capsys, "status", "-c", str(project))[0] == code


@pytest.mark.parametrize("kind", [UserError, ConfigError, ShortageError, NetworkError, BusyError])
def test_an_error_of_a_worker_process_keeps_its_code(kind):
    name = f"{kind.__module__}.{kind.__qualname__}"
    text = f"Traceback (most recent call last):\n  File\n{name}: the cause [while running 'Run']"
    found = user_error(RuntimeError(text), Path("log"))
    assert (type(found), str(found)) == (kind, "the cause")
    assert type(user_error(kind("the cause"), Path("log"))) is kind


def test_a_store_that_limits_the_rate_is_a_network_error():
    error = user_error(OSError("An error occurred (SlowDown) when calling the PutObject operation"), Path("log"))
    assert isinstance(error, NetworkError)
    assert "run again later" in str(error)
