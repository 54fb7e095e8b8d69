"""What image files say about their use: PLUS, TDM and C2PA in every format that is decoded, and who owns them."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_rights import (
    data_mining,
    encode,
    in_jpeg,
    in_png,
    in_webp,
    iptc_dataset,
    manifest_without_assertion,
    training_mining,
    xmp,
)

from pipeline.consent import image_segments, iptc_xmp
from pipeline.consent.image_metadata import read_image_metadata
from pipeline.consent.iptc_xmp import Rights
from pipeline.consent.policy import Signal, refusing

PICTURE = Image.new("RGB", (64, 48), "teal")
JPEG, PNG, WEBP, GIF, AVIF, TIFF = (encode(PICTURE, name) for name in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF"))
NO_TRAINING = training_mining("cawg.training-mining", "ai_training", "notAllowed")


def decides(file: bytes) -> Signal | None:
    refusal = refusing(read_image_metadata(file).statements)
    return None if refusal is None else refusal.signal


# The vocabulary of IPTC Photo Metadata 2023.1: value -> is it refused.
DATA_MINING = {
    "DMI-UNSPECIFIED": False,
    "DMI-ALLOWED": False,
    "DMI-PROHIBITED-AIMLTRAINING": True,
    "DMI-PROHIBITED-GENAIMLTRAINING": True,
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING": True,
    "DMI-PROHIBITED": True,
    "DMI-PROHIBITED-SEECONSTRAINT": True,
    "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR": True,
    "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR": True,
    "dmi-prohibited": True,
}


@pytest.mark.parametrize("value", DATA_MINING)
def test_every_value_of_data_mining(value: str) -> None:
    assert decides(in_jpeg(JPEG, packet=data_mining(value))) == (
        Signal.PLUS_DATA_MINING if DATA_MINING[value] else None
    )


PROHIBITED = data_mining("DMI-PROHIBITED")
XMP_BLOCK = b"!\xff\x0bXMP DataXMP" + PROHIBITED + b"\0"
ANIMATION = encode(PICTURE, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48), "red")], duration=50)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500), dtype=np.uint8))
LARGE_GIF = encode(NOISE, "GIF", save_all=True, append_images=[NOISE.transpose(Image.Transpose.ROTATE_180)])
FILES = {
    "jpeg": in_jpeg(JPEG, packet=PROHIBITED),
    "jpeg-attribute": in_jpeg(JPEG, packet=xmp(attributes='plus:DataMining="DMI-PROHIBITED"')),
    "jpeg-resource": in_jpeg(JPEG, packet=xmp('<plus:DataMining rdf:resource="http://x/DMI-PROHIBITED"/>')),
    "jpeg-other-prefix": in_jpeg(JPEG, packet=PROHIBITED.replace(b"plus:", b"p:").replace(b"xmlns:plus", b"xmlns:p")),
    "jpeg-utf-16": in_jpeg(JPEG, packet=PROHIBITED.decode().replace("\ufeff", "").encode("utf-16")),
    "jpeg-damaged-xml": in_jpeg(JPEG, packet=PROHIBITED[: PROHIBITED.index(b"</plus")]),
    "png": in_png(PNG, packet=PROHIBITED),
    "png-compressed": in_png(PNG, packet=PROHIBITED, compress=True),
    "png-at-the-end": in_png(PNG, packet=PROHIBITED, last=True),
    "webp": in_webp(WEBP, b"XMP ", PROHIBITED),
    "gif": GIF[:-1] + b"!\xff\x0bXMP DataXMP" + PROHIBITED + b"\0;",
    "gif-between-frames": ANIMATION[: ANIMATION.rindex(b"!\xf9")] + XMP_BLOCK + ANIMATION[ANIMATION.rindex(b"!\xf9") :],
    "gif-after-frames": ANIMATION[:-1] + XMP_BLOCK + b";",
    "gif-after-its-end": ANIMATION + XMP_BLOCK,
    "gif-large-after-frames": LARGE_GIF[:-1] + XMP_BLOCK + b";",
    "gif-large-between-frames": LARGE_GIF[: LARGE_GIF.rindex(b"!\xf9")]
    + XMP_BLOCK
    + LARGE_GIF[LARGE_GIF.rindex(b"!\xf9") :],
    "gif-large-cut": LARGE_GIF[:-4_000] + XMP_BLOCK,
    "gif-cut": ANIMATION[:-40] + XMP_BLOCK,
    "tiff": encode(PICTURE, "TIFF", tiffinfo={700: PROHIBITED}),
    "tiff-second-image": encode(
        PICTURE,
        "TIFF",
        save_all=True,
        append_images=[Image.open(io.BytesIO(encode(PICTURE, "TIFF", tiffinfo={700: PROHIBITED})))],
    ),
    "avif": encode(PICTURE, "AVIF", xmp=PROHIBITED),
    "avif-box": AVIF + (len(PROHIBITED) + 24).to_bytes(4) + b"uuid" + bytes(16) + PROHIBITED,
    "avif-after-its-end": AVIF + PROHIBITED,
    "bmp": encode(PICTURE, "BMP") + PROHIBITED,
}


@pytest.mark.parametrize("name", FILES)
def test_every_format(name: str) -> None:
    assert decides(FILES[name]) == Signal.PLUS_DATA_MINING


C2PA = {
    ("cawg.training-mining", "ai_training", "notAllowed"): True,
    ("cawg.training-mining", "ai_generative_training", "notAllowed"): True,
    ("cawg.training-mining", "data_mining", "notAllowed"): True,
    ("cawg.training-mining", "ai_training", "constrained"): True,
    ("cawg.training-mining", "ai_inference", "notAllowed"): True,
    ("c2pa.training-mining", "ai_training", "notAllowed"): True,
    ("cawg.training-mining", "ai_training", "allowed"): False,
    ("c2pa.training-mining", "data_mining", "allowed"): False,
    ("cawg.other", "ai_training", "notAllowed"): False,
}


@pytest.mark.parametrize("assertion", C2PA, ids=" ".join)
def test_every_value_of_an_assertion(assertion: tuple[str, str, str]) -> None:
    file = in_jpeg(JPEG, boxes=training_mining(*assertion))
    assert decides(file) == (Signal.C2PA if C2PA[assertion] else None)


@pytest.mark.parametrize(
    "file",
    [
        in_jpeg(JPEG, boxes=NO_TRAINING),
        in_jpeg(JPEG, boxes=NO_TRAINING, piece=50),
        in_png(PNG, boxes=NO_TRAINING),
        in_webp(WEBP, b"C2PA", NO_TRAINING),
        encode(PICTURE, "TIFF", tiffinfo={52545: NO_TRAINING}),
        GIF[:-1] + b"!\xff\x0bC2PA_GIF\1\0\0" + NO_TRAINING + b"\0;",
        AVIF + (len(NO_TRAINING) + 24).to_bytes(4) + b"uuid" + bytes(16) + NO_TRAINING,
    ],
    ids=["jpeg", "jpeg-in-pieces", "png", "webp", "tiff", "gif", "avif"],
)
def test_assertions_in_every_format(file: bytes) -> None:
    assert decides(file) == Signal.C2PA


def test_a_manifest_alone_is_noted_and_refuses_nothing() -> None:
    (statement,) = read_image_metadata(in_jpeg(JPEG, boxes=manifest_without_assertion())).statements
    assert (statement.signal, statement.refuses) == (Signal.C2PA, False)


@pytest.mark.parametrize(("value", "is_refused"), [("1", True), ("0", False), ("2", False)])
def test_a_reservation_in_xmp(value: str, is_refused: bool) -> None:
    file = in_jpeg(JPEG, packet=xmp(f"<tdm:reservation>{value}</tdm:reservation>"))
    assert decides(file) == (Signal.TDM_RESERVATION if is_refused else None)


def rights_of(file: bytes) -> Rights:
    return read_image_metadata(file).rights


def test_rights_creator_and_licence_are_kept() -> None:
    packet = xmp(
        "<dc:rights><rdf:Alt><rdf:li xml:lang='x-default'>\u00a9 2024 Ana Lopez</rdf:li></rdf:Alt></dc:rights>"
        "<dc:creator><rdf:Seq><rdf:li>Ana Lopez</rdf:li><rdf:li>Bo Li</rdf:li></rdf:Seq></dc:creator>",
        "xmpRights:WebStatement='https://example.com/licence'",
    )
    expected = Rights("\u00a9 2024 Ana Lopez", "Ana Lopez; Bo Li", "https://example.com/licence")
    assert rights_of(in_jpeg(JPEG, packet=packet)) == rights_of(in_png(PNG, packet=packet)) == expected
    licence = xmp("<cc:license rdf:resource='https://creativecommons.org/licenses/by/4.0/'/>")
    assert rights_of(in_jpeg(JPEG, packet=licence)).license_url == "https://creativecommons.org/licenses/by/4.0/"


def test_iptc_fills_what_xmp_leaves_out() -> None:
    iptc = iptc_dataset(80, "Ana L\u00f3pez") + iptc_dataset(25, "keyword") + iptc_dataset(116, "(c) Agency")
    assert rights_of(in_jpeg(JPEG, iptc=iptc)) == Rights("(c) Agency", "Ana L\u00f3pez", None)
    packet = xmp("<dc:creator><rdf:Seq><rdf:li>Somebody</rdf:li></rdf:Seq></dc:creator>")
    assert rights_of(in_jpeg(JPEG, packet=packet, iptc=iptc)) == Rights("(c) Agency", "Somebody", None)


@pytest.mark.parametrize(
    "file", [JPEG, PNG, WEBP, GIF, ANIMATION, LARGE_GIF, AVIF, TIFF, b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]
)
def test_files_without_metadata_say_nothing(file: bytes) -> None:
    found = read_image_metadata(file)
    assert (found.statements, found.rights) == ((), Rights())


SEEDS = [*FILES.values(), in_jpeg(JPEG, boxes=NO_TRAINING, iptc=iptc_dataset(80, "x"))]


@given(st.sampled_from(SEEDS), st.integers(0, 2**20), st.binary(max_size=6), st.integers(0, 400))
def test_damaged_files_are_read_without_a_fault(file: bytes, place: int, bytes_: bytes, cut: int) -> None:
    at = place % len(file)
    read_image_metadata(file[:at] + bytes_ + file[at + len(bytes_) : len(file) - cut])


@pytest.mark.parametrize("file", [ANIMATION, LARGE_GIF, AVIF, TIFF], ids=["gif", "large-gif", "avif", "tiff"])
def test_whole_files_without_metadata_are_not_searched(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    monkeypatch.setattr(image_segments, "_search", lambda encoded, _: searched.append(len(encoded)))
    read_image_metadata(file)
    assert not searched
    read_image_metadata(file[:-20])  # damaged
    assert bool(searched) == (file is not TIFF)  # whose pixels come last


PROGRAM = xmp("<xmp:CreatorTool xmlns:xmp='http://ns.adobe.com/xap/1.0/'>Program 1.0</xmp:CreatorTool>")


def test_packets_of_programs_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr(iptc_xmp, "_parse", parsed.append)
    read_image_metadata(in_jpeg(JPEG, packet=PROGRAM))
    assert not parsed
    for name in ("DC:Rights", "dc:creator", "x:license", "plus:datamining", "xmpRights:WebStatement"):
        read_image_metadata(in_jpeg(JPEG, packet=xmp(f"<{name}>y</{name}>")))
        assert len(parsed) == 1
        parsed.clear()
