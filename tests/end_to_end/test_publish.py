"""`wit publish`: what arrives is the set, also after an interruption, and other programs read it."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from support.hub_server import HubServer
from support.recorded_web import make_project, tree

from pipeline.cli.main import main
from pipeline.stages import publish as publishing
from pipeline.stages.publish import GitBlob, HubDestination

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of huggingface_hub's client, about httpx
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = make_project(tmp_path_factory.mktemp("publish"))
    assert main(["build", "-c", str(config), "--quiet"]) == 0
    return config


def test_a_folder_gets_the_set_and_nothing_twice(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "public"
    assert main(["publish", str(target), "-c", str(project), "--quiet"]) == 0
    shards = tree(project.parent / "work/shards")
    assert {name: digest for name, digest in tree(target).items() if name != "README.md"} == shards
    assert main(["verify", "--shards", str(target)]) == 0
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    assert "# Data card" in card
    (target / "00001.tar").write_bytes(b"cut")
    (target / "00002.parquet").unlink()
    capsys.readouterr()
    assert main(["publish", str(target), "-c", str(project), "--quiet"]) == 0
    assert "2 files sent, " in capsys.readouterr().out
    assert main(["verify", "--shards", str(target)]) == 0


class Hub:
    """A stand-in for the Hub: keeps files, large ones as LFS; loses its connection after some commits."""

    def __init__(self, commits: int) -> None:
        self.commits_left = commits
        self.held: dict[str, bytes] = {}
        self.order: list[str] = []
        self.created: list[dict] = []

    def create_repo(self, repository: str, **options: object) -> None:
        self.created.append({"repository": repository, **options})

    def list_repo_tree(self, repository: str, repo_type: str) -> list[SimpleNamespace]:
        entries = [SimpleNamespace(path="folder")]
        for name, content in self.held.items():
            lfs = SimpleNamespace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
            large = lfs if len(content) > 5_000 else None
            entries.append(SimpleNamespace(path=name, lfs=large, blob_id=GitBlob.of(content).sha1))
        return entries

    def create_commit(self, repository: str, operations: list, commit_message: str, repo_type: str) -> None:
        if not self.commits_left:
            raise ConnectionError("the connection is lost")
        self.commits_left -= 1
        for operation in operations:
            self.held[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()
            self.order.append(operation.path_in_repo)


def test_the_hub_gets_the_set_and_a_lost_connection_resumes(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(commits=2)
    monkeypatch.setattr(publishing, "_FILES_PER_COMMIT", 6)
    monkeypatch.setattr(HubDestination, "open", classmethod(lambda cls, url: cls(hub, url.partition("/datasets/")[2])))
    command = ["publish", "hf://datasets/me/set", "-c", str(project), "--quiet"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "the connection is lost; run again to resume" in error
    assert "manifest.json" not in hub.held
    hub.commits_left = 100
    assert main(command) == 0
    assert len(hub.order) == len(set(hub.order))  # nothing twice
    assert hub.order[-1] == "manifest.json"
    shards = project.parent / "work/shards"
    assert {name: content for name, content in hub.held.items() if name != "README.md"} == {
        path.name: path.read_bytes() for path in shards.iterdir()
    }
    assert hub.created[0] == {"repository": "me/set", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert main(command) == 0
    assert "0 files sent" in capsys.readouterr().out


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that huggingface_hub's own client sends to, in commits of six files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with HubServer().running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(publishing, "_FILES_PER_COMMIT", 6)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


PUBLISH = ["publish", "hf://datasets/me/set", "--quiet", "-c"]


def test_the_hub_gets_the_set_over_http_and_an_interrupted_upload_resumes(
    project: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.before_upload = lambda number, content: 403 if number > 3 else None
    assert main([*PUBLISH, str(project)]) == 1
    error = capsys.readouterr().err
    assert "403" in error
    assert error.endswith("run again to resume\n")
    assert error.count("\n") == 1
    assert "manifest.json" not in hub.files
    kept = set(hub.objects)
    assert len(kept) == 3
    hub.uploads.clear()
    hub.before_upload = lambda number, content: None
    assert main([*PUBLISH, str(project)]) == 0
    assert kept.isdisjoint(path.rsplit("/", 1)[1] for path in hub.uploads)  # nothing is sent twice
    shards = project.parent / "work/shards"
    assert {name: content for name, content in hub.files.items() if name != "README.md"} == {
        path.name: path.read_bytes() for path in shards.iterdir()
    }
    assert hub.commits[-1] == ["manifest.json"]
    assert "private" in (hub.created[0].get("visibility"), hub.created[0].get("private") and "private")
    commits = len(hub.commits)
    assert main([*PUBLISH, str(project)]) == 0
    assert len(hub.commits) == commits


def test_what_arrives_damaged_is_named_and_sent_again(
    project: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.before_upload = lambda number, content: content[:-1] + b"?" if number == 2 else None
    assert main([*PUBLISH, str(project)]) == 1
    assert "is missing there, or differs from what was sent; run again" in capsys.readouterr().err
    assert hub.files
    assert "manifest.json" not in hub.files  # nobody takes it for a whole set
    (damaged,) = (oid for oid, content in hub.objects.items() if hashlib.sha256(content).hexdigest() != oid)
    del hub.objects[damaged]  # as the Hub would refuse it
    assert main([*PUBLISH, str(project)]) == 0
    assert "3 files sent, " in capsys.readouterr().out  # with sizes.json and manifest.json


def test_a_rate_limit_of_the_hub_is_a_failure_of_the_network(
    project: Path, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.before_upload = lambda number, content: 429
    assert main([*PUBLISH, str(project)]) == 4
    assert "run again later" in capsys.readouterr().err


def test_git_knows_the_same_blob() -> None:
    assert GitBlob.of(b"hello\n").sha1 == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_datasets_reads_what_was_published(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    target = tmp_path / "public"
    assert main(["publish", str(target), "-c", str(project), "--quiet"]) == 0
    tars = sorted(str(path) for path in target.glob("*.tar"))
    loaded = datasets.load_dataset(
        "webdataset", data_files={"train": tars}, split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = [row for path in sorted(target.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    samples = {row["uid"]: row for row in rows if row["status"] == "success"}
    assert {sample["__key__"] for sample in loaded} == samples.keys()
    for sample in loaded:
        row = samples[sample["__key__"]]
        assert sample["txt"] == row["caption"]
        assert sample["jpg"].size == (row["width"], row["height"])
        assert sample["json"]["captions"] == row["captions"]


@pytest.mark.parametrize(
    ("url", "code"),
    [("hf://me/set", 2), ("hf://datasets/set", 2), ("foo://a/b", 2), ("s3fake://x", 2), ("ftp://127.0.0.1:1/x", 4)],
)
def test_a_place_that_is_none_is_one_line(
    project: Path, capsys: pytest.CaptureFixture[str], url: str, code: int
) -> None:
    assert main(["publish", url, "-c", str(project)]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"wit: {url}: ")
    assert err.count("\n") == 1


def test_a_damaged_shard_is_not_published(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(project.parent, tmp_path / "copy")
    path = tmp_path / "copy/work/shards/00000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert main(["publish", str(tmp_path / "public"), "-c", str(tmp_path / "copy/wit.toml"), "--quiet"]) == 1
    assert "00000.tar is damaged" in capsys.readouterr().err
    assert not (tmp_path / "public/manifest.json").exists()


def test_without_a_set_there_is_nothing_to_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_project(tmp_path / "new", 10)
    assert main(["publish", str(tmp_path / "public"), "-c", str(config)]) == 1
    assert "no finished dataset" in capsys.readouterr().err
