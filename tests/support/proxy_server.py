"""An HTTP proxy on 127.0.0.1 that leads every name to a server of the test, by CONNECT or by absolute URLs."""

import asyncio
import base64
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from support.hostile_server import running_server


@dataclass
class ProxyServer:
    """Leads to `ports` by name; asks for `password` ("user:password") if that is set. `asked` has the request lines."""

    ports: dict[str, int]
    password: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, password: str = "") -> str:
        return f"http://{password}{'@' if password else ''}127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened = [writer]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = head.decode("latin-1").split("\r\n")
                self.asked.append(line)
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                given = headers.get("proxy-authorization", "").removeprefix("Basic ")
                status = 407 if base64.b64decode(given).decode() != self.password else self.status
                method, target, _ = line.split(" ")
                name = target.split("://")[-1].partition("/")[0].partition(":")[0]
                if status != 200:
                    writer.write(f"HTTP/1.1 {status} no\r\nContent-Length: 0\r\n\r\n".encode())
                    continue
                there, back = await asyncio.open_connection("127.0.0.1", self.ports[name])
                opened.append(back)
                if method == "CONNECT":
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = "/" + target.split("://")[1].partition("/")[2]
                    back.write(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
                await asyncio.gather(_copy(there, writer), _copy(reader, back))
                break
        for connection in opened:
            connection.close()

    @contextlib.contextmanager
    def running(self) -> Iterator["ProxyServer"]:
        """Serve until the block ends."""
        with running_server(self._serve) as self.port:
            yield self


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    target.close()
