"""An S3 server on this machine, and the settings of its clients."""

from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
import requests
from moto.server import ThreadedMotoServer


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server without any bucket on a free port; yield its URL.

    All servers of a process share their buckets, so what an earlier test left is removed.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        requests.post(f"http://{host}:{port}/moto-api/reset", timeout=60).raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def s3_settings(url: str) -> Iterator[None]:
    """Set the standard environment variables of S3 clients, for the server at `url`.

    File systems that exist are forgotten, before and after: they keep the settings that they were made with.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        try:
            yield
        finally:
            fsspec.get_filesystem_class("s3").clear_instance_cache()
