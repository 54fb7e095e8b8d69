"""`wit build --dry-run`: what it says is what a build uses, and it connects to nothing."""

import re
import socket
from pathlib import Path

import fsspec
import pytest
from support.recorded_web import make_project

from pipeline.cli.main import main

CLOUD = [
    "--runner=DataflowRunner",
    "--project=some-project",
    "--region=europe-west1",
    "--temp_location=gs://some-bucket/temp",
    "--sdk_container_image=europe-docker.pkg.dev/some-project/wit/worker:1",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at any connection, any look-up of a name, and at any file system but the local one."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection: {args}")

    opened = fsspec.core.url_to_fs

    def local_only(url: str, **options: object) -> object:
        assert "://" not in url, url
        return opened(url, **options)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(fsspec.core, "url_to_fs", local_only)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project", 30)


@pytest.fixture
def remote(local: Path) -> Path:
    """The same config with everything in a bucket, which does not exist."""
    text = local.read_text().replace('workspace = "work"', 'workspace = "gs://some-bucket/wit"')
    text = re.sub(r"""(['"])(queries\.parquet|evals|web-\*\.warc\.gz)\1""", r'"gs://some-bucket/\2"', text)
    local.write_text(text)
    return local


def dry_run(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    """Return the lines by their names."""
    capsys.readouterr()
    before = sorted(config.parent.rglob("*"))
    assert main(["build", "-c", str(config), "--dry-run", *options]) == 0
    assert sorted(config.parent.rglob("*")) == before
    out = capsys.readouterr().out
    assert out.endswith("nothing was started, and no request was sent\n")
    lines = [line.partition(" ") for line in out.splitlines()]
    return {name: text.strip() for name, _, text in lines}


def test_a_build_on_this_machine(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(local, capsys, "--direct_num_workers=3")
    assert lines["workspace"] == str(local.parent / "work")
    assert lines["pairs"].startswith("3 warc files; at most 583 MiB a process")
    assert lines["fetched"] == "6 parts; at most 2,048 MiB a process; network: archives or sources, workspace"
    assert lines["runner"] == "FnApiRunner; 3 processes, one unit at a time in each"
    assert lines["memory"] == "6 GiB for all processes"
    assert "for each 1,000,000 planned pairs (no plan is read)" in lines["cost"]


def test_a_build_that_sends_requests_names_the_web(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local.write_text(local.read_text().replace("network = false", "network = true"))
    assert "network: the web (ports 80 and 443), DNS, workspace" in dry_run(local, capsys)["fetched"]


def test_the_memory_of_sorting_is_what_the_config_says(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with local.open("a") as config:
        config.write("[run]\nmemory_bytes = 4294967296\n")
    lines = dry_run(local, capsys, "--direct_num_workers=2")
    assert "at most 4,096 MiB a process" in lines["dedup"]
    assert lines["memory"] == "8 GiB for all processes"


def test_only_the_wanted_stages_are_named(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(local, capsys, "--to", "plan")
    assert {"pairs", "plan"} == lines.keys() & {"pairs", "plan", "fetched", "dedup", "shards", "report"}


def test_a_source_that_is_not_there_is_named(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in local.parent.glob("*.warc.gz"):
        file.unlink()
    assert main(["build", "-c", str(local), "--dry-run"]) == 2
    assert "web-*.warc.gz matches no file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_size_of_a_plan_that_is_there_is_used(local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "-c", str(local), "--to", "plan", "--quiet"]) == 0
    planned = re.search(r"(\d+) pairs", dry_run(local, capsys)["cost"])
    assert planned is not None
    assert 30 <= int(planned[1]) <= 40


class TestDataflow:
    """Needs apache-beam[gcp]."""

    @pytest.fixture(autouse=True)
    def _gcp(self) -> None:
        pytest.importorskip("apache_beam.runners.dataflow.internal.apiclient", reason="needs apache-beam[gcp]")

    def test_defaults(self, remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = dry_run(remote, capsys, *CLOUD)
        assert lines["workspace"] == "gs://some-bucket/wit"
        assert lines["pairs"].startswith("the files of gs://some-bucket/web-*.warc.gz, listed when it runs")
        assert lines["image"] == "europe-docker.pkg.dev/some-project/wit/worker:1"
        assert lines["machines"] == ("4 x n2-standard-4, for the whole job; 16 processes (one a vCPU), 1 thread each")
        assert "3.8 GiB a process; the largest, of plan, takes 2.0" in lines["memory"]
        assert "too little" not in lines["memory"]
        assert lines["disk"] == "100 GB a machine (a standard persistent disk)"
        assert lines["preempted"].startswith("no preemptible machines. They could be used")
        assert "parts resume inside" in lines["preempted"]
        assert "default Compute Engine account" in lines["identity"]
        assert "an external address for each machine" in lines["network"]

    def test_prices_add_up(self, remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
        lines = dry_run(remote, capsys, *CLOUD)
        hour = 16 * 0.056 + 64 * 0.003557 + 400 * 0.000054 + 4 * 0.005
        assert lines["prices"].startswith(f"${hour:.2f} an hour: 16 vCPUs at $0.0560, 64 GB of memory at $0.003557")
        cpu_h = 1e6 * (1 / 323 + 0.75 * 71e-6 + 0.5 * 411e-6) / 3600
        dollars = (cpu_h / 16 + 25 * 4 / 60) * hour
        assert lines["cost"].endswith(f"and 1.7 h in which machines start: ${dollars:.2f}")

    def test_what_the_user_says_is_used(self, remote: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--machine_type=n2-highcpu-8", "--max_num_workers=50", "--disk_size_gb=300", "--flexrs_goal"]
        options += ["COST_OPTIMIZED", "--no_use_public_ips", "--subnetwork=regions/europe-west1/subnetworks/inner"]
        options += ["--service_account_email=wit@some-project.iam.gserviceaccount.com"]
        lines = dry_run(remote, capsys, *CLOUD, *options)
        assert lines["machines"].startswith("50 x n2-highcpu-8, at most: Dataflow adds them; 400 processes")
        assert "too little, choose a machine type with at least 3 GiB a vCPU" in lines["memory"]
        assert lines["disk"].startswith("300 GB a machine")
        assert lines["preempted"].startswith("preemptible machines (FlexRS); parts resume inside")
        assert "workers run as wit@some-project" in lines["identity"]
        assert "subnetworks/inner; no external addresses" in lines["network"]
        assert "at $0.0336" in lines["prices"]
        assert "addresses" not in lines["prices"]
        assert "Cloud NAT at $0.045 a GB" in lines["cost"]

    def test_what_machines_of_a_cloud_cannot_read_is_named(
        self, remote: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        remote.write_text(remote.read_text().replace("gs://some-bucket/queries.parquet", "queries.parquet"))
        for command in (["--dry-run"], []):
            assert main(["build", "-c", str(remote), *command, *CLOUD]) == 2
            error = capsys.readouterr().err
            assert "allowlist.path = 'queries.parquet': machines of Dataflow cannot read it" in error
            assert error.count("\n") == 1
