"""Block lists as Bloom filters in the format of DCSO's tools (github.com/DCSO/bloom), which others read and write too.

The filter has hashes as hexadecimal digits, or URLs. It takes 29 bits for each entry at a false positive rate of one in
a million, tells nobody what is on it, and drops that fraction of what is not. Looks (PDQ) need lists of lines: a Bloom
filter finds equal entries only.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

ALGORITHMS = {32: hashlib.md5, 40: hashlib.sha1, 64: hashlib.sha256}
"""Hashes by their number of hexadecimal digits."""


class BloomError(ValueError):
    """A file that is not a Bloom filter, or no package that reads one."""


class _Filter(Protocol):
    """What we use of `poppy.BloomFilter`."""

    def contains_str(self, text: str) -> bool: ...

    def dumps(self) -> bytes: ...


@dataclass(frozen=True)
class BloomList:
    """A Bloom filter of hashes with so many digits, or of URLs, where `digits` is 0."""

    filter: _Filter
    digits: int

    @classmethod
    def parse(cls, content: bytes, digits: int) -> "BloomList":
        """Read a filter.

        Raises:
            BloomError: it is none, or the package `poppy-py` is missing.
        """
        try:
            import poppy
        except ImportError:
            raise BloomError(
                "Bloom filters need poppy-py: run pip install '.[bloom]' in the project's folder, on all workers"
            ) from None
        try:
            return cls(poppy.loads(content), digits)
        except (ValueError, OverflowError, MemoryError) as error:
            raise BloomError(f"not a Bloom filter of DCSO's format: {error}") from None

    def __reduce__(self) -> tuple[Callable[[bytes, int], "BloomList"], tuple[bytes, int]]:
        return BloomList.parse, (self.filter.dumps(), self.digits)

    def has(self, content: str | bytes) -> bool:
        """Return whether a URL is listed, or the hash of a URL or of a file."""
        if self.digits:
            raw = content.encode() if isinstance(content, str) else content
            return self.has_digits(ALGORITHMS[self.digits](raw).hexdigest())
        return isinstance(content, str) and self.filter.contains_str(content)

    def has_digits(self, digits: str) -> bool:
        """Return whether a hash is listed, in lower or upper case."""
        return self.filter.contains_str(digits.lower()) or self.filter.contains_str(digits.upper())
