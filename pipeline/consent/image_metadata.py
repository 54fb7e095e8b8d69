"""Statements in an image file about its use and rights."""

from dataclasses import dataclass

from pipeline.consent.c2pa import read_c2pa
from pipeline.consent.image_segments import find_segments
from pipeline.consent.iptc_xmp import Rights, read_iptc, read_xmp
from pipeline.consent.policy import Statement


@dataclass(frozen=True, slots=True)
class ImageMetadata:
    """The statements in a file and its rights; XMP takes precedence over IPTC."""

    statements: tuple[Statement, ...]
    rights: Rights


def read_image_metadata(encoded: bytes) -> ImageMetadata:
    """Return the statements in the metadata of an image file. Takes microseconds if there are none."""
    found = find_segments(encoded)
    if not (found.xmp or found.iptc or found.c2pa):
        return _NONE
    statements: list[Statement] = []
    rights = Rights()
    for packet in found.xmp:
        of_packet, stated = read_xmp(packet)
        rights = rights.or_else(of_packet)
        statements += stated
    for resources in found.iptc:
        rights = rights.or_else(read_iptc(resources))
    for boxes in found.c2pa:
        if (statement := read_c2pa(boxes)) is not None:
            statements.append(statement)
    return ImageMetadata(tuple(statements), rights)


_NONE = ImageMetadata((), Rights())
