"""Lists of what must not be used, as their owners write them: domains, URLs, hashed URLs, hashes of images.

    domains          example.com           with all its subdomains; *.example.com, ||example.com^ and hosts files too
    urls             https://example.com/a.jpg
    url hashes       64, 40 or 32 hexadecimal digits: SHA-256, SHA-1 or MD5 of a URL
    image hashes     the same of a file as downloaded, or pdq:<64 digits>, which also finds near copies; a number after
                     it is the distance in bits up to which an image is one: pdq:<64 digits> 24
    uids             32 hexadecimal digits: one pair, while other captions of the image may stay

Lists of URLs and of hashes may also be Bloom filters (bloom.py).

One entry per line; empty lines and lines that start with # are skipped. URLs match with http or https, as normalised
here. Of each hash 8 bytes are kept, in one sorted array: ten million entries take 80 MB, and a wrong match among a
billion images has a probability below one in a thousand.
"""

import hashlib
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.consent.bloom import ALGORITHMS, BloomList
from pipeline.consent.policy import Signal, Statement
from pipeline.web.urls import normalize_url

PDQ_MAX_BITS = 31
"""The distance up to which PDQ's authors consider two images the same; for entries that name none."""

_MOST_BITS = 64  # of 256; two unrelated images are about 128 apart

_HEX = re.compile("[0-9a-f]+")
_HOST = re.compile(r"[^\s/:|^*]+\.[^\s/:|^*]+")


class EntryError(ValueError):
    """A line that is not a valid entry of its list; the message does not repeat it."""


@dataclass(frozen=True)
class DigestSet:
    """A set of digests of one length, by their first 8 bytes: sorted, with the place of each first two bytes. As arrays
    of Python: to look one key up, numpy takes several times as long.
    """

    keys: "array[int]"
    starts: "array[int]"

    @classmethod
    def of(cls, digests: Iterable[bytes]) -> "DigestSet":
        keys = np.unique(np.fromiter((int.from_bytes(digest[:8]) for digest in digests), np.uint64))
        starts = np.searchsorted(keys >> np.uint64(48), np.arange(2**16 + 1, dtype=np.uint64))
        return cls(_packed(keys), _packed(starts.astype(np.uint64)))

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, digest: bytes) -> bool:
        key = int.from_bytes(digest[:8])
        first = key >> 48
        end = self.starts[first + 1]
        at = bisect_left(self.keys, key, self.starts[first], end)
        return at < end and self.keys[at] == key


def _packed(numbers: np.ndarray) -> "array[int]":
    packed = array("Q")
    packed.frombytes(numbers.view(np.uint8).data)
    return packed


@dataclass(frozen=True)
class BlockLists:
    """All block lists. The sets of hashes are keyed by their number of hex digits.

    `pdq` is (images, 4) uint64, `pdq_bits` the distance up to which an image is one of them, (images,).
    """

    domains: frozenset[str] = frozenset()
    urls: DigestSet | None = None
    url_hashes: Mapping[int, DigestSet] = field(default_factory=dict)
    image_hashes: Mapping[int, DigestSet] = field(default_factory=dict)
    pdq: np.ndarray | None = None
    pdq_bits: np.ndarray | None = None
    uids: DigestSet | None = None
    url_blooms: Sequence[BloomList] = ()
    image_blooms: Sequence[BloomList] = ()

    @classmethod
    def read(
        cls, lines: Mapping[str, Iterable[str]], blooms: Mapping[str, Sequence[BloomList]] | None = None
    ) -> "BlockLists":
        """Return the lists of each kind: domains, urls, url_hashes, image_hashes, uids; `blooms` are of the three in
        the middle.

        Raises:
            EntryError: a line is not a valid entry.
        """
        urls = [_digest(_without_scheme(_url(line))) for line in _entries(lines.get("urls", ()))]
        images = list(_entries(lines.get("image_hashes", ())))
        looks = [_pdq(line) for line in images if line.startswith("pdq:")]
        uids = [_uid(line) for line in _entries(lines.get("uids", ()))]
        blooms = blooms or {}
        return cls(
            frozenset(_domain(line) for line in _entries(lines.get("domains", ()))),
            DigestSet.of(urls) if urls else None,
            _by_length(_entries(lines.get("url_hashes", ()))),
            _by_length(line for line in images if not line.startswith("pdq:")),
            np.stack([look for look, _ in looks]) if looks else None,
            np.array([bits for _, bits in looks]) if looks else None,
            DigestSet.of(uids) if uids else None,
            [*blooms.get("urls", ()), *blooms.get("url_hashes", ())],
            blooms.get("image_hashes", ()),
        )

    def __bool__(self) -> bool:
        lists = (self.domains, self.urls, self.url_hashes, self.image_hashes, self.uids)
        return any(map(bool, (*lists, self.url_blooms, self.image_blooms))) or self.pdq is not None

    def of_url(self, url: str, host: str) -> Statement | None:
        """Return the refusal of a normalised URL, before it is requested."""
        if self.domains and self._has_domain(host.rstrip(".")):
            return _listed("domain")
        bare = _without_scheme(url) if self.urls or self.url_hashes or self.url_blooms else ""
        if self.urls is not None and _digest(bare) in self.urls:
            return _listed("URL")
        for digits, hashes in self.url_hashes.items():
            for scheme in ("https://", "http://"):
                if ALGORITHMS[digits]((scheme + bare).encode()).digest() in hashes:
                    return _listed("URL")
        for bloom in self.url_blooms:
            if any(bloom.has(scheme + bare) for scheme in ("https://", "http://")):
                return _listed("URL")
        return None

    def _has_domain(self, host: str) -> bool:
        """Return whether a host or one of its parents is listed."""
        while host:
            if host in self.domains:
                return True
            host = host.partition(".")[2]
        return False

    def of_file(self, encoded: bytes, sha256: str) -> Statement | None:
        """Return the refusal of an image file as downloaded."""
        for digits, hashes in self.image_hashes.items():
            digest = bytes.fromhex(sha256) if digits == 64 else ALGORITHMS[digits](encoded).digest()
            if digest in hashes:
                return _listed("image")
        return _listed("image") if any(bloom.has(encoded) for bloom in self.image_blooms) else None

    def of_fingerprints(self, sha256: str, pdq: bytes) -> Statement | None:
        """Return the refusal of an image by its SHA-256 and PDQ hash."""
        if (hashes := self.image_hashes.get(64)) is not None and bytes.fromhex(sha256) in hashes:
            return _listed("image")
        if any(bloom.has_digits(sha256) for bloom in self.image_blooms if bloom.digits == 64):
            return _listed("image")
        return self.of_pdq(pdq)

    def of_pdq(self, pdq: bytes) -> Statement | None:
        """Return the refusal of an image whose PDQ hash is near one on the list."""
        if self.pdq is None:
            return None
        distances = np.bitwise_count(self.pdq ^ np.frombuffer(pdq, np.uint64)).sum(axis=1)
        return _listed("image") if bool((distances <= self.pdq_bits).any()) else None

    def of_uid(self, uid: str) -> Statement | None:
        """Return the refusal of one pair, whose image may stay with another caption."""
        return _listed("pair") if self.uids is not None and bytes.fromhex(uid) in self.uids else None


def _listed(what: str) -> Statement:
    """Return a statement that names neither the list nor the entry: block lists may be confidential."""
    return Statement(Signal.BLOCK_LIST, f"the {what} is on a block list", refuses=True)


def _entries(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield entry


def _domain(line: str) -> str:
    name = line.split()[-1].lower().removeprefix("||").partition("^")[0].partition("/")[0].lstrip("*.").rstrip(".")
    url = normalize_url(f"http://{name}/") if _HOST.fullmatch(name) else None
    if url is None:
        raise EntryError("not a domain name")
    return url[len("http://") : -1]


def _url(line: str) -> str:
    url = normalize_url(line if "://" in line else f"http://{line}")
    if url is None:
        raise EntryError("not an http(s) URL")
    return url


def _without_scheme(url: str) -> str:
    return url.partition("://")[2]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _by_length(entries: Iterable[str]) -> dict[int, DigestSet]:
    found: dict[int, list[bytes]] = {}
    for entry in entries:
        digits = entry.lower().rpartition(":")[2]
        if len(digits) not in ALGORITHMS or _HEX.fullmatch(digits) is None:
            raise EntryError("not an MD5, SHA-1 or SHA-256 hash in hexadecimal digits")
        found.setdefault(len(digits), []).append(bytes.fromhex(digits)[:8])
    return {digits: DigestSet.of(digests) for digits, digests in found.items()}


def _pdq(entry: str) -> tuple[np.ndarray, int]:
    digits, _, bits = entry.removeprefix("pdq:").strip().lower().partition(" ")
    bits = bits.strip() or str(PDQ_MAX_BITS)
    if len(digits) != 64 or _HEX.fullmatch(digits) is None:
        raise EntryError("not a PDQ hash of 64 hexadecimal digits")
    if not (bits.isascii() and bits.isdigit() and len(bits) <= 2 and int(bits) <= _MOST_BITS):
        raise EntryError(f"not a distance from 0 to {_MOST_BITS} bits")
    return np.frombuffer(bytes.fromhex(digits), np.uint64), int(bits)


def _uid(entry: str) -> bytes:
    digits = entry.lower()
    if len(digits) != 32 or _HEX.fullmatch(digits) is None:
        raise EntryError("not a uid of 32 hexadecimal digits")
    return bytes.fromhex(digits)
