"""Damage bytes as disks, networks and attackers do."""

from collections.abc import Callable, Sequence
from random import Random

_INTERESTING = (
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\r\n",
    b"\r",
    b"'",
)
_NUMBERS = (b"0", b"-1", b"4294967296", b"9223372036854775807", b"1e309", b"00000000000000000000001")


def mutate(random: Random, data: bytes, others: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """Return `data` with one to six damages; `others` are spliced in, `tokens` are words of the format."""
    damaged = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        random.choice(_DAMAGES)(random, damaged, others, tokens)
        if len(damaged) > 4 * len(data) + (1 << 16):
            del damaged[4 * len(data) + (1 << 16) :]
    return bytes(damaged)


def _at(random: Random, data: bytearray) -> int:
    """Return a place, the head and the tail of the file more often than the rest."""
    near = min(len(data), 512)
    place = random.random()
    if place < 0.3:
        return random.randint(0, near)
    return random.randint(max(0, len(data) - near), len(data)) if place < 0.45 else random.randint(0, len(data))


def _slice(random: Random, data: Sequence[int]) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + int(2 ** (random.random() * 14)))


_Damage = Callable[[Random, bytearray, Sequence[bytes], Sequence[bytes]], None]


def _flip_bit(random: Random, data: bytearray, *_: object) -> None:
    if data:
        data[min(_at(random, data), len(data) - 1)] ^= 1 << random.randrange(8)


def _overwrite(random: Random, data: bytearray, *_: object) -> None:
    at, new = _at(random, data), random.choice((random.randbytes(random.randint(1, 8)), random.choice(_INTERESTING)))
    data[at : at + len(new)] = new


def _cut(random: Random, data: bytearray, *_: object) -> None:
    del data[_at(random, data) :]


def _drop(random: Random, data: bytearray, *_: object) -> None:
    start, end = _slice(random, data)
    del data[start:end]


def _zero(random: Random, data: bytearray, *_: object) -> None:
    start, end = _slice(random, data)
    data[start:end] = bytes(end - start)


def _repeat(random: Random, data: bytearray, *_: object) -> None:
    start, end = _slice(random, data)
    data[start:start] = data[start:end] * random.choice((1, 1, 2, 8, 64))


def _splice(random: Random, data: bytearray, others: Sequence[bytes], _: Sequence[bytes]) -> None:
    other = random.choice(others)
    start, end = _slice(random, other)
    at = _at(random, data)
    data[at : at + random.choice((0, end - start))] = other[start:end]


def _insert_token(random: Random, data: bytearray, _: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    at = _at(random, data)
    data[at:at] = random.choice([*tokens, *_NUMBERS, *_INTERESTING]) * random.choice((1, 1, 1, 3, 200))


_DAMAGES: tuple[_Damage, ...] = (_flip_bit, _flip_bit, _overwrite, _overwrite, _cut, _drop, _zero, _repeat, _splice)
_DAMAGES += (_insert_token, _insert_token)
