"""An S3 server on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

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
