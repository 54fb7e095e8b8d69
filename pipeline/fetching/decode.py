"""From a downloaded file to the outcome of its URL.

A decoder can crash on a malicious file. The journal records each decoding before it starts; a file that was being
decoded when the process ended is decoded in a separate process the next time: `python -m pipeline.fetching.decode`.
"""

import hashlib
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import IO

from pipeline.config.fetch import FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.errors import UserError
from pipeline.fetching.consent import ConsentRecord, check_page
from pipeline.fetching.images import store_image
from pipeline.fetching.journal import Journal
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.outcome import FetchFailure, Outcome, failed
from pipeline.records import Reason

_MAX_CRASHES = 10  # kills from outside count too, so one is not sufficient evidence
_APART_S = 300.0
_USER_ERROR = 3  # exit code

Decoded = tuple[Outcome, bytes | None]
"""The outcome of a URL that responded with a file, and the image to keep."""


@dataclass(frozen=True)
class Stated:
    """What a source says of a file: the hashes it must have, one of them; or that it is from a tar, made of `original`.

    Hashes are "sha256:HEX" or "md5:HEX".
    """

    hashes: frozenset[str] = frozenset()
    is_from_tar: bool = False
    original: str | None = None


_NOTHING = Stated()


def decode_noted(
    journal: Journal,
    url: str,
    file: IO[bytes],
    http_status: int | None,
    config: FetchConfig,
    block_lists: BlockLists,
    consent: ConsentRecord,
    stated: Stated = _NOTHING,
) -> Outcome:
    """Decode a file, and record its start and its outcome in the journal. Runs in a decoder thread. Writing in that
    thread keeps the checksums and writes of images out of the event loop.

    Raises:
        UserError: this machine lacks the memory.
    """
    with file:
        encoded = file.read()
    journal.add_decoding(url)
    crashes = journal.suspects[url]
    if crashes >= _MAX_CRASHES:
        decoded = _crashed(encoded, http_status, f"the process ended {crashes} times while it was decoded")
    else:
        decoded = (decode_apart if crashes else decode)(encoded, http_status, config, block_lists, consent, stated)
    outcome, image = decoded
    return journal.add_outcome(url, consent.add_to(outcome), image, consent.times)


def decode_apart(
    encoded: bytes,
    http_status: int | None,
    config: FetchConfig,
    block_lists: BlockLists,
    consent: ConsentRecord,
    stated: Stated = _NOTHING,
) -> Decoded:
    """Decode a file in a separate process, which may crash.

    Raises:
        UserError: this machine lacks the memory.
    """
    try:
        run = subprocess.run(
            [sys.executable, "-m", "pipeline.fetching.decode"],
            input=pickle.dumps((encoded, http_status, config, block_lists, consent, stated)),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            timeout=_APART_S,
        )
    except subprocess.TimeoutExpired:
        return _crashed(encoded, http_status, f"decoding took more than {_APART_S:g} s")
    if run.returncode < 0:
        return _crashed(encoded, http_status, f"the decoder ended with {signal.Signals(-run.returncode).name}")
    if run.returncode == _USER_ERROR:
        raise UserError(run.stderr.decode())
    if run.returncode:
        raise RuntimeError(f"the decoder process failed: {run.stderr.decode('utf-8', 'replace')[-2_000:]}")
    decoded: Decoded
    decoded, record = pickle.loads(run.stdout)
    consent.checked, consent.said = record.checked, record.said
    return decoded


def _crashed(encoded: bytes, http_status: int | None, message: str) -> Decoded:
    failure = FetchFailure(Reason.DECODER_CRASHED, message)
    return failed(failure, http_status=http_status, sha256=hashlib.sha256(encoded).hexdigest()), None


def decode(
    encoded: bytes,
    http_status: int | None,
    config: FetchConfig,
    block_lists: BlockLists,
    consent: ConsentRecord,
    stated: Stated = _NOTHING,
) -> Decoded:
    """Decode a file in this process.

    Raises:
        UserError: this machine lacks the memory.
    """
    sha256 = hashlib.sha256(encoded).hexdigest()
    try:
        if http_status is not None:
            check_page(encoded, http_status, config.consent)
        _check_hash(encoded, sha256, stated)
        metadata = read_image_metadata(encoded)
        listed = block_lists.of_file(encoded, sha256)
        consent.heed("image", [*([listed] if listed else []), *metadata.statements], config.consent)
        image = store_image(encoded, config, stated.is_from_tar)
        if (listed := block_lists.of_pdq(image.pdq)) is not None:
            consent.heed("image", [listed], config.consent)
    except MemoryError as error:
        raise local_fault(error) or error from error
    except FetchFailure as failure:
        return failed(failure, http_status=http_status, sha256=sha256), None
    outcome = Outcome(
        http_status=http_status,
        width=image.size[0],
        height=image.size[1],
        original_width=image.original_size[0],
        original_height=image.original_size[1],
        sha256=(stated.original or "").removeprefix("sha256:") or sha256,
        exif=image.exif,
        pdq=image.pdq,
        pdq_quality=image.pdq_quality,
        rights=metadata.rights.rights,
        creator=metadata.rights.creator,
        license_url=metadata.rights.license_url,
    )
    return outcome, image.file


def _check_hash(encoded: bytes, sha256: str, stated: Stated) -> None:
    """Compare a file with the hashes that it may have.

    Raises:
        FetchFailure: it has another one.
    """
    if not stated.hashes or f"sha256:{sha256}" in stated.hashes:
        return
    found = f"sha256:{sha256}"
    if any(name.startswith("md5:") for name in stated.hashes):
        found = f"md5:{hashlib.md5(encoded, usedforsecurity=False).hexdigest()}"
        if found in stated.hashes:
            return
    raise FetchFailure(Reason.HASH_MISMATCH, f"{found}, not {min(stated.hashes)}")


def main() -> int:
    """Decode the file on standard input; for `decode_apart`."""
    arguments = pickle.load(sys.stdin.buffer)
    try:
        decoded = decode(*arguments)
    except UserError as error:
        sys.stderr.write(str(error))
        return _USER_ERROR
    sys.stdout.buffer.write(pickle.dumps((decoded, arguments[4])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
