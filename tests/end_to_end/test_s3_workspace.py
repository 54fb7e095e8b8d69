"""A whole build whose workspace and archives are on an S3 server, against the same build on disk."""

import hashlib
from datetime import datetime
from pathlib import Path

import boto3
import pytest
from support.recorded_web import make_project, tree
from support.s3_server import s3_server, s3_settings

from pipeline.cli.main import main
from pipeline.shards.manifest import read_manifest

pytestmark = pytest.mark.slow


@pytest.fixture
def s3():
    """A bucket `wit` on a server of our own; the standard environment variables point at it."""
    with s3_server() as url, s3_settings(url):
        client = boto3.client("s3")
        client.create_bucket(Bucket="wit")
        yield client


def bucket_tree(client, prefix: str) -> dict[str, str]:
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="wit", Prefix=prefix):
        for item in page.get("Contents", []):
            body = client.get_object(Bucket="wit", Key=item["Key"])["Body"].read()
            found[item["Key"][len(prefix) :]] = hashlib.sha256(body).hexdigest()
    return found


def times_of_change(client) -> dict[str, datetime]:
    """Return when each object of a build was written last; the lock is written by every build."""
    found = client.list_objects_v2(Bucket="wit")["Contents"]
    return {item["Key"]: item["LastModified"] for item in found if not item["Key"].endswith("/lock")}


def test_the_same_shards_as_on_disk(s3, tmp_path: Path):
    local = make_project(tmp_path / "disk", 60, parts=3)
    assert main(["build", "-c", str(local), "--quiet"]) == 0
    remote = make_project(tmp_path / "remote", 60, parts=3)
    for file in remote.parent.glob("web-*.warc.gz"):
        s3.upload_file(str(file), "wit", f"crawl/{file.name}")
    text = remote.read_text().replace('workspace = "work"', 'workspace = "s3://wit/work"')
    remote.write_text(text.replace("archives = ['web-", "archives = ['s3://wit/crawl/web-"))

    assert main(["build", "-c", str(remote), "--quiet"]) == 0
    shards = bucket_tree(s3, "work/shards/")
    on_disk = tree(local.parent / "work" / "shards")
    assert len(shards) == 3 * 3 + 3  # sizes.json, manifest.json, croissant.json
    assert {n for n in on_disk if shards[n] != on_disk[n]} == {"manifest.json"}  # it names the archives
    manifests = [read_manifest(f"{root}/work/shards").content for root in ("s3://wit", local.parent)]
    assert all(manifests[0][key] == manifests[1][key] for key in ("shards", "files", "account"))
    assert not any("/tmp/" in name for name in bucket_tree(s3, "work/.wit/"))

    before = times_of_change(s3)
    assert main(["build", "-c", str(remote), "--quiet"]) == 0
    assert times_of_change(s3) == before

    for config in (local, remote):
        config.write_text(config.read_text().replace("cap = 15", "cap = 3"))
        assert main(["build", "-c", str(config), "--quiet"]) == 0
    on_disk = tree(local.parent / "work" / "shards")
    shards = bucket_tree(s3, "work/shards/")
    assert {n for n in on_disk if shards[n] != on_disk[n]} == {"manifest.json"}
    assert not any("earlier" in name for name in bucket_tree(s3, "work/"))
