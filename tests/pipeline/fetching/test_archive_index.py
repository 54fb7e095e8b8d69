"""The archive index that the processes of a machine share."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.recorded_web import image_url, make_project

from pipeline.errors import UserError
from pipeline.fetching import archives
from pipeline.fetching.archives import ArchiveIndex, index_folder


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_project(tmp_path / "project", 10, files=1)
    return [str(tmp_path / "project/web-0.warc.gz")]


def test_it_is_made_once(recordings):
    folder = index_folder(recordings, "v")
    made = folder.stat().st_mtime_ns
    assert index_folder(recordings, "v") == folder
    assert folder.stat().st_mtime_ns == made
    answer = ArchiveIndex(folder).get(image_url(1), 1_000_000, lambda *_: True)
    assert answer is not None
    assert answer.status == 200


def test_one_process_makes_it_while_the_others_wait(recordings, monkeypatch):
    builds = []

    def build_slowly(paths, folder):
        builds.append(paths)
        time.sleep(0.2)
        build(paths, folder)

    build = archives.build_archive_index
    monkeypatch.setattr(archives, "build_archive_index", build_slowly)
    with ThreadPoolExecutor(4) as workers:  # every call opens the lock file anew, as another process would
        folders = set(workers.map(lambda _: index_folder(recordings, "v"), range(4)))
    assert len(folders) == len(builds) == 1


def test_copies_elsewhere_and_other_formats_have_their_own(recordings, tmp_path, monkeypatch):
    first = index_folder(recordings, "v")
    copy = tmp_path / "copy.warc.gz"
    copy.write_bytes(Path(recordings[0]).read_bytes())
    assert index_folder([str(copy)], "v") != first  # the index of a copy must not point into the original
    monkeypatch.setattr(archives, "INDEX_FORMAT", archives.INDEX_FORMAT + 1)
    assert index_folder(recordings, "v") != first


def test_a_folder_that_others_may_enter_is_not_trusted(recordings, tmp_path):
    index_folder(recordings, "v")
    next(tmp_path.glob("wit-archives-*")).chmod(0o755)
    with pytest.raises(UserError, match="set TMPDIR to a folder of your own"):
        index_folder(recordings, "v")


def test_a_folder_for_temporary_files_of_a_group_is_no_harm(recordings, tmp_path):
    tmp_path.chmod(0o2770)  # what is made in it inherits the group and this bit
    assert index_folder(recordings, "v").is_dir()
