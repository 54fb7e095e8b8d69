"""From a downloaded file to the outcome of its URL."""

import hashlib
import mmap
from typing import IO

from pipeline.config import FetchConfig
from pipeline.consent.block_lists import BlockLists
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.fetching.consent import ConsentRecord, check_page
from pipeline.fetching.images import store_image
from pipeline.fetching.local_faults import local_fault
from pipeline.fetching.outcome import FetchFailure, Outcome, failed

_BYTES_PER_PIXEL = 16  # the most that decoding takes, see docs/fetching.md
_SPARE_BYTES = 64 << 20


def decode(
    file: IO[bytes], http_status: int, config: FetchConfig, block_lists: BlockLists, consent: ConsentRecord
) -> tuple[Outcome, bytes | None]:
    """Return the outcome of a URL that responded with a file, and the image to keep. Runs in a decoder thread.

    Raises:
        UserError: this machine lacks the memory.
    """
    with file:
        encoded = file.read()
    sha256 = hashlib.sha256(encoded).hexdigest()
    try:
        check_page(encoded, http_status, config.consent)
        metadata = read_image_metadata(encoded, config.consent)
        listed = block_lists.of_file(encoded, sha256)
        consent.heed("image", [*([listed] if listed else []), *metadata.statements], config.consent)
        image = store_image(encoded, config)
        if (listed := block_lists.of_pdq(image.pdq)) is not None:
            consent.heed("image", [listed], config.consent)
    except FetchFailure as failure:
        if (fault := local_fault(failure)) is not None and not _has_memory(config):
            raise fault from failure
        return failed(failure, http_status=http_status, sha256=sha256), None
    outcome = Outcome(
        http_status=http_status,
        width=image.size[0],
        height=image.size[1],
        original_width=image.original_size[0],
        original_height=image.original_size[1],
        sha256=sha256,
        exif=image.exif,
        pdq=image.pdq,
        pdq_quality=image.pdq_quality,
        rights=metadata.rights.rights,
        creator=metadata.rights.creator,
        license_url=metadata.rights.license_url,
    )
    return outcome, image.jpeg


def _has_memory(config: FetchConfig) -> bool:
    """Return whether the largest image could be decoded: if so, a MemoryError is the fault of a malformed file."""
    try:
        mmap.mmap(-1, config.max_pixels * _BYTES_PER_PIXEL + _SPARE_BYTES).close()
    except OSError:
        return False
    return True
