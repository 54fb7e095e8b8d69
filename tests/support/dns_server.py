"""A DNS server on 127.0.0.1 that answers late, wrongly or not at all (RFC 1035), and counts what it is asked for."""

import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from heapq import heappop, heappush

A, AAAA = 1, 28
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME, REFUSED = 0, 2, 3, 5


@dataclass
class DnsServer:
    """Answers `names` (name -> IPv4 addresses or a response code); what it does not know does not exist.

    `delay_s` before each answer, a share `loss` of which is never sent; `most_at_once` counts those on their way.
    """

    names: dict[str, list[str] | int] = field(default_factory=dict)
    ttl_s: int = 300
    delay_s: float = 0.0
    loss: float = 0.0
    queries: Counter[str] = field(default_factory=Counter)  # of IPv4 addresses
    most_at_once: int = 0
    address: str = ""

    def answer(self, query: bytes) -> bytes:
        """Return the response to a query."""
        end = query.index(b"\0", 12) + 5
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from(">H", query, at + 1)
        self.queries[name] += kind == A
        found = self.names.get(name, NO_SUCH_NAME)
        addresses = found if isinstance(found, list) and kind == A else []
        code = found if isinstance(found, int) else NO_ERROR
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
        records = [
            b"\xc0\x0c" + struct.pack(">HHIH", A, 1, self.ttl_s, 4) + socket.inet_aton(address) for address in addresses
        ]
        return head + query[12:end] + b"".join(records)

    def serve(self, sock: socket.socket, stop: threading.Event) -> None:
        """Answer until `stop` is set."""
        chance = random.Random(0)
        due: list[tuple[float, int, bytes, tuple[str, int]]] = []
        number = 0
        while not stop.is_set():
            while due and due[0][0] <= time.monotonic():
                _, _, response, client = heappop(due)
                sock.sendto(response, client)
            sock.settimeout(0.002 if due else 0.02)
            try:
                query, client = sock.recvfrom(4_096)
            except TimeoutError:
                continue
            number += 1
            response = self.answer(query)
            if chance.random() >= self.loss:
                heappush(due, (time.monotonic() + self.delay_s, number, response, client))
                self.most_at_once = max(self.most_at_once, len(due))


@contextmanager
def serve_dns(server: DnsServer) -> Iterator[DnsServer]:
    """Serve on a free port until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server.address = f"127.0.0.1:{sock.getsockname()[1]}"
        stop = threading.Event()
        thread = threading.Thread(target=server.serve, args=(sock, stop), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()
