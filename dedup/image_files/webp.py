"""Find the image data in a WebP file (RIFF container, RFC 9649 section 2)."""

import struct

_ANIMATION_FRAME_BYTES = 16
_MAX_CHUNKS = 10_000


def pixel_data_end(encoded: bytes) -> int:
    """Return where the data of the first image ends, 0 if there is none; EXIF and XMP data may follow it."""
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(encoded):
            break
        name, size = struct.unpack_from("<4sI", encoded, at)
        if name in (b"VP8 ", b"VP8L"):
            return min(at + 8 + size, len(encoded))
        at += 8 + (_ANIMATION_FRAME_BYTES if name == b"ANMF" else size + size % 2)
    return 0
