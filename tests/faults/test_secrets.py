"""Planted secrets of every kind are nowhere in a workspace, in its logs or in what is printed."""

import base64
import hashlib
import http.server
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from support.http_server import QuietServer, serving
from support.image_server import serve_images
from support.recorded_web import caption, image_url, make_images, make_project, make_web_project

from pipeline.beam.log import log_file
from pipeline.cli.main import main

PLANTED = ("pa55-Word-1", "t0ken-in-Query-2", "s1gnature-3", "env1ronment-Key-4")


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    urls = [image_url(i) for i in range(20)]
    table = pa.table({"url": urls, "caption": [caption(i) for i in range(20)]})
    pq.write_table(table, folder / "table.parquet")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    site = QuietServer(Handler)
    with serving(site):
        yield f"127.0.0.1:{site.server_port}"


def holds_secret(content: bytes) -> bool:
    return any(secret.encode() in content for secret in PLANTED)


def test_no_planted_secret_is_written_or_printed(tmp_path, server, monkeypatch, capfd):
    password, token, signature, key = PLANTED
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    config = make_project(tmp_path / "project", 20, parts=2, files=1)
    url = f"http://{server}/table.parquet?token={token}&X-Amz-Signature={signature}"
    text = config.read_text()
    config.write_text(text.replace("[balance]", f'[[sources]]\nkind = "url-table"\npaths = ["{url}"]\n[balance]'))
    previous = os.umask(0o027)
    try:
        assert main(["build", "-c", str(config)]) == 0
    finally:
        os.umask(previous)
    work = config.parent / "work"
    assert {path.stat().st_mode & 0o777 for path in work.rglob("*") if path.is_file()} == {0o640}
    for command in ("status", "verify", "report"):
        assert main([command, "-c", str(config)]) == 0
    files = [path for path in work.rglob("*") if path.is_file()]
    assert [path for path in files if holds_secret(path.read_bytes())] == []

    shards = pa.concat_tables([pq.read_table(p) for p in sorted((work / "shards").glob("*.parquet"))])
    sources = set(shards["source"].to_pylist())
    assert f"http://{server}/table.parquet?token=***&X-Amz-Signature=***" in sources
    assert not [source for source in sources if source.startswith("/")]

    for path in (
        f"http://user:{password}@127.0.0.1:1/table.parquet",
        f"http://{server}/missing.parquet?sig={signature}&access_token={token}",
        f"s3://{key}:{password}@bucket/{key}.parquet",
    ):
        config.write_text(text.replace("web-*.warc.gz", path, 1))
        assert main(["build", "-c", str(config), "--quiet"]) in (1, 2)
    printed = capfd.readouterr()
    assert not holds_secret((printed.out + printed.err).encode())
    logs = [log_file(), *(tmp_path / "tmp").rglob("*.log")]  # the process's own may be older than this test
    assert not [log for log in logs if holds_secret(log.read_bytes())]
    assert {log.stat().st_mode & 0o777 for log in logs} <= {0o600}


def forms_of(key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Return the forms in which a private key could be written: its seed, DER and PEM, in bytes, hex and base64."""
    seed = key.private_bytes_raw()
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (line,) = [line for line in pem.splitlines() if not line.startswith(b"-----")]
    return {
        "PEM": line,
        "PEM mark": b"PRIVATE KEY-----",
        "DER": der,
        "seed": seed,
        "seed, hex": seed.hex().encode(),
        "seed, hex, capitals": seed.hex().upper().encode(),
        "seed, base64": base64.b64encode(seed).rstrip(b"="),
        "seed, base64url": base64.urlsafe_b64encode(seed).rstrip(b"="),
        "seed, as Python prints it": repr(seed)[2:-1].encode(),
    }


def unpacked(path: Path) -> bytes:
    """Return the content of a file, in Parquet files the decoded cells too."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        cells = [cell for column in pq.read_table(path).columns for cell in column.to_pylist()]
        content += "\n".join(map(repr, cells)).encode()
    return content


def test_the_private_key_of_signed_requests_is_nowhere(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a key of this test only").digest())
    agent = "https://crawler.example/.well-known/http-message-signatures-directory"
    with serve_images(make_images(20)) as web:
        config = make_web_project(
            tmp_path / "project", 20, web, parts=2, files=1, signature_key="signing.pem", signature_agent=agent
        )
        path = config.parent / "signing.pem"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        assert main(["build", "-c", str(config)]) == 0
        assert web.headers
        assert all("Signature-Input" in headers for headers in web.headers)
        for command in (
            ["status"],
            ["verify"],
            ["report"],
            ["card"],
            ["card", "--eu-summary"],
            ["consent", "directory"],
        ):
            assert main([*command, "-c", str(config)]) == 0
        path.write_bytes(path.read_bytes().replace(b"\nMC4C", b"\nMC4D"))  # a damaged key, which errors could quote
        assert main(["consent", "directory", "-c", str(config)]) in (1, 2)
    printed = capfd.readouterr()
    files = [found for folder in (config.parent / "work", tmp_path / "tmp") for found in folder.rglob("*")]
    written = {str(found): unpacked(found) for found in files if found.is_file()}
    written["log"] = log_file().read_bytes()
    assert b"apache_beam" in written["log"]
    written["printed"] = (printed.out + printed.err).encode()
    forms = forms_of(key)
    assert [(name, form) for name, content in written.items() for form in forms if forms[form] in content] == []
    assert [name for name, content in written.items() if b"signing.pem" in content] == ["printed"]  # the last error


def test_a_source_is_named_the_same_wherever_the_config_lies(tmp_path):
    names = []
    for place in ("a", "b/c"):
        config = make_project(tmp_path / place, 10, parts=1, files=1)
        outside = tmp_path / place / "../elsewhere-data"
        outside.mkdir(exist_ok=True)
        os.replace(config.parent / "web-0.warc.gz", outside / "web-0.warc.gz")
        for pattern in ("../elsewhere-data/web-*.warc.gz", str(Path(os.path.normpath(outside)) / "web-*.warc.gz")):
            config.write_text(
                config.read_text()
                .replace("../elsewhere-data/web-*.warc.gz", "web-*.warc.gz")
                .replace('"web-*.warc.gz"]', f'"{pattern}"]')
            )
            assert main(["build", "-c", str(config), "--quiet", "--to", "pairs"]) == 0
            tables = [pq.read_table(p) for p in (config.parent / "work/pairs").glob("*.parquet")]
            names.append({name for table in tables for name in table["source"].to_pylist()})
    assert names == [{"../elsewhere-data/web-0.warc.gz"}, {"web-0.warc.gz"}] * 2
