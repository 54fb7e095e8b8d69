"""Serve the simulated web on 127.0.0.1: all its hosts on one port, distinguished by the Host header.

    with serve(Path("demo/web")) as web:
        requests.get(f"{web.gateway}/a.jpg", headers={"Host": "photos.example"})
        web.requests()  # {"http://photos.example/a.jpg": 1}

The server is a separate process. It counts requests, and it ends when its parent does: its standard input is a pipe
whose other end the parent holds.
"""

import asyncio
import json
import socket
import struct
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from pipeline.demo.site import Answer, Site

_CONTROL_HOST = "control.invalid"  # reserved (RFC 2606): no planted URL can have it
_DRIP_INTERVAL_S = 0.2


@dataclass(frozen=True)
class RunningWeb:
    """A server that listens at `gateway`, e.g. http://127.0.0.1:40123."""

    gateway: str

    def requests(self) -> Counter[str]:
        """Return the number of requests of each URL, including robots.txt and unknown URLs."""
        request = urllib.request.Request(f"{self.gateway}/requests", headers={"Host": _CONTROL_HOST})
        with urllib.request.urlopen(request) as response:
            return Counter(json.load(response))


@contextmanager
def serve(directory: Path, port: int = 0) -> Iterator[RunningWeb]:
    """Run the server until the block ends; `directory` holds site.json and files/, port 0 takes any free one."""
    command = [sys.executable, "-m", "pipeline.demo.server", str(directory), str(port)]
    pipe = subprocess.PIPE
    # In a new session, so that Ctrl-C reaches only the parent, which then ends the server.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            gateway = process.stdout.readline().strip()
            if not gateway:
                raise RuntimeError(f"the demo server did not start: exit code {process.wait()}")
            yield RunningWeb(gateway)
        finally:
            process.stdin.close()


class SimulatedWeb:
    """Responds to requests for the URLs of a site and counts them."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.requests: Counter[str] = Counter()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Respond to one request, or break the connection if that is what the URL does."""
        if request.host == _CONTROL_HOST:
            return web.json_response(self.requests)
        url = f"http://{request.host}{request.raw_path}"
        answers = self._site.answers.get(url, [Answer(404)])
        answer = answers[min(self.requests[url], len(answers) - 1)]
        self.requests[url] += 1
        if answer.manner == "reset":
            return _reset(request)
        body = self._site.body(answer)
        if answer.manner == "whole":
            return web.Response(status=answer.status, headers=answer.headers, body=body)
        return await _send_part(request, answer, body)


async def _send_part(request: web.BaseRequest, answer: Answer, body: bytes) -> web.StreamResponse:
    """Announce the whole body, then send it byte by byte or only half of it."""
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(body)
    await response.prepare(request)
    with suppress(ConnectionError):  # the client had enough
        if answer.manner == "cut":
            await response.write(body[: len(body) // 2])
        else:
            for position in range(len(body)):
                await response.write(body[position : position + 1])
                await asyncio.sleep(_DRIP_INTERVAL_S)
    _disconnect(request)
    return response


def _reset(request: web.BaseRequest) -> web.Response:
    """Close the connection with RST instead of an orderly end; the response goes nowhere."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    _disconnect(request)
    return web.Response()


def _disconnect(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.close()


async def _run(directory: Path, port: int) -> None:
    simulated = SimulatedWeb(Site.load(directory))
    runner = web.ServerRunner(web.Server(simulated.answer, access_log=None), handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2])))
