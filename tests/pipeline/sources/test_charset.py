"""Decoding pages whose declarations are right, missing or lies."""

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.charset import decode_page

RUSSIAN = "<p>Собака бежит по пляжу, а кошка спит на диване и видит сны о рыбе.</p>" * 5
JAPANESE = "<p>犬が浜辺を走り、猫はソファで魚の夢を見ながら眠っています。</p>" * 5
FRENCH = "<p>Le chien court sur la plage, déjà très fatigué, à côté d'un château.</p>" * 5


def text_of(page: bytes, header: str | None = None) -> str:
    decoded = decode_page(page, header)
    assert decoded is not None
    return decoded.text


@pytest.mark.parametrize(
    ("text", "encoding", "header", "meta"),
    [
        (RUSSIAN, "utf-8", None, None),
        (RUSSIAN, "utf-8", "iso-8859-1", None),  # a server's default
        (RUSSIAN, "utf-8", None, "windows-1251"),
        (RUSSIAN, "windows-1251", "windows-1251", None),
        (RUSSIAN, "windows-1251", None, "windows-1251"),
        (RUSSIAN, "windows-1251", "utf-8", "windows-1251"),  # the header cannot be right
        (RUSSIAN, "windows-1251", None, None),
        (RUSSIAN, "koi8-r", "koi8-r", None),
        (JAPANESE, "shift_jis", None, "shift_jis"),
        (JAPANESE, "euc_jp", None, None),
        (JAPANESE, "iso2022_jp", "iso-2022-jp", None),
        (FRENCH, "latin-1", None, None),
        (FRENCH, "latin-1", None, "utf-8"),
        (FRENCH, "latin-1", None, "utf-16"),  # a meta element that can be read is not UTF-16
        (FRENCH, "utf-16-le", "utf-16le", None),
        (FRENCH, "latin-1", "no-such-charset", None),
        (FRENCH, "latin-1", "'ISO-8859-1'", None),
    ],
)
def test_declarations_and_lies(text, encoding, header, meta):
    page = (f'<meta charset="{meta}">' if meta else "") + text
    assert text_of(page.encode(encoding), header) == page


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")],
)
def test_a_byte_order_mark_settles_it(mark, encoding):
    assert text_of(mark + RUSSIAN.encode(encoding), "windows-1251") == RUSSIAN


def test_utf8_with_some_damage_stays_utf8():
    page = RUSSIAN.encode()
    damaged = page[:101] + b"\xff" + page[101:]
    assert text_of(damaged).replace("\ufffd", "").startswith("<p>Собака бежит по пляжу")


def test_a_page_cut_within_a_character():
    assert text_of(RUSSIAN.encode()[: len("<p>Соб".encode()) - 1], "windows-1251") == "<p>Со"


KOREAN = "<p>강아지가 바닷가를 달리고 고양이는 소파에서 잠을 잔다.</p>" * 5


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        (KOREAN + "<img alt='똠방각하 사진'>", "cp949", "euc-kr"),  # a syllable that EUC-KR itself lacks
        ("<img alt='①㈱髙橋の犬の写真'>", "cp932", "shift_jis"),  # characters of NEC and IBM
        ("<img alt='①犬'>", "cp932", "x-sjis"),
        ("<img alt='銀行嘅狗'>", "big5hkscs", "big5"),  # a character of Hong Kong's
        ("<img alt='狗的照片，朱镕基'>", "gbk", "gb2312"),
        ("<img alt='狗的照片 €'>", "gb18030", "gb2312"),
        ("<img alt='50 € – “dog”'>", "cp1252", "iso-8859-1"),
        ("<img alt='Łódź „żółw”'>", "cp1250", "windows-1250"),
    ],
)
def test_a_label_means_what_browsers_read(text, codec, label):
    page = text.encode(codec)
    assert text_of(page, label) == text
    meta = f"<meta http-equiv=Content-Type content='text/html; charset={label}'>"
    assert text_of(meta.encode() + page) == meta + text


@pytest.mark.parametrize(("text", "codec"), [(KOREAN, "cp949"), (JAPANESE, "cp932"), (JAPANESE, "euc_jp")])
@pytest.mark.parametrize("place", ["start", "middle", "end"])
def test_a_stray_byte_costs_itself_and_not_the_page(text, codec, place):
    page = text.encode(codec)
    at = {"start": 0, "middle": text[: len(text) // 2].encode(codec).__len__(), "end": len(page)}[place]
    label = {"cp949": "euc-kr", "cp932": "shift_jis", "euc_jp": "euc-jp"}[codec]
    damaged = text_of(page[:at] + b"\xff" + page[at:], label)
    assert damaged.count("\ufffd") <= 2
    assert damaged.replace("\ufffd", "").count("。") + damaged.count("잠을 잔다.") >= 4


@pytest.mark.parametrize(
    ("text", "codec", "label"),
    [
        ("<img alt='똠 사진'>", "cp949", "euc-kr"),
        ("<img alt='囍字的'>", "gbk", "gbk"),
        ("<img alt='犬の写真'>", "cp932", "shift_jis"),
        ("<img alt='แมวดำ'>", "cp874", "iso-8859-11"),
        ("<img alt='狗的照片'>", "big5", "big5"),
    ],
)
def test_two_stray_bytes_do_not_disqualify_the_declaration_of_a_short_page(text, codec, label):
    for damaged in (b"<p>\xff\xff</p>" + text.encode(codec), text.encode(codec) + b"<p>\xff\xff</p>"):
        assert text in text_of(damaged, label)
        assert text in text_of(f"<meta charset={label}>".encode() + damaged)


def test_halves_of_an_emoji_are_lost_and_not_another_alphabet():
    """Some databases store characters beyond U+FFFF as two surrogates of three bytes each, which browsers refuse."""
    dog = "\ud83d\udc36".encode("utf-8", "surrogatepass")
    for before in ("", "犬", "é"):
        page = f"<meta charset=utf-8><img alt='{before}a dog @'>"
        assert text_of(page.encode().replace(b"@", dog)) == page.replace("@", "\ufffd\ufffd")


@pytest.mark.parametrize(
    ("head", "header", "encoding"),
    [
        ("", "windows-1251", "windows-1251"),
        ("<meta charset=iso-8859-1>", None, "windows-1252"),
        ("<meta charset=utf-8>", None, "utf-8"),
        ("<html lang=ru>", None, "windows-1251"),
        ("", None, "windows-1252"),
        ("", "iso-2022-kr", "utf-8"),
    ],
)
def test_a_page_of_ascii_has_the_encoding_that_it_declares(head, header, encoding):
    """The queries of its URLs are written in it: `?q=caf&eacute;`."""
    assert decode_page(f"{head}<img src='?q=&eacute;'>".encode(), header).encoding == encoding


def test_every_byte_of_windows_1252_is_a_character():
    text = text_of(b"<p>" + bytes(range(0x80, 0x100)) + b"</p>", "iso-8859-1")
    assert "\ufffd" not in text
    assert text[3:6] == "€\x81‚"


@pytest.mark.parametrize("header", ["utf-8", None])
@pytest.mark.parametrize(
    ("text", "codec", "language"),
    [
        ("<img alt='café'>", "cp1252", None),
        ("<img alt='It’s a dog'>", "cp1252", "en"),
        ("<img alt='Acme® dog'>", "cp1252", None),
        ("<img alt='כלב'>", "cp1255", "he"),
        ("<img alt='пёс'>", "cp1251", "ru-RU"),
        ("<img alt='собака на пляже'>", "cp1251", None),
        ("<img alt='собака на пляже'>", "koi8-r", "ru"),  # the statistics know better than the language
        ("<img alt='žluťoučký kůň'>", "cp1250", "cs"),
        ("<img alt='σκύλος στην παραλία'>", "cp1253", "el"),
        ("<img alt='강아지 사진'>", "cp949", "ko"),
        ("<img alt='犬の写真'>", "cp932", "ja"),
    ],
)
def test_a_page_that_is_not_the_utf8_it_says(text, codec, language, header):
    page = (f"<html lang='{language}'>" if language else "<html>") + "<meta charset=utf-8>" + text
    assert text_of(page.encode(codec), header) == page


def test_utf8_declared_with_a_stray_byte_keeps_its_letters():
    page = "<meta charset=utf-8><img alt='강아지'><img alt='dog@'>".encode().replace(b"@", b"\xe9")
    assert text_of(page) == "<meta charset=utf-8><img alt='강아지'><img alt='dog\ufffd'>"


@pytest.mark.parametrize(("text", "codec", "label"), [("쨍쨍", "cp949", "euc-kr"), ("짤짤", "cp949", "euc-kr")])
def test_a_short_text_that_is_utf8_by_chance(text, codec, label):
    raw = next(t for a in range(0xC2, 0xC9) for b in range(0xA1, 0xC0) if (t := bytes([a, b]) * 2).decode("utf-8"))
    assert text_of(b"<img alt='" + raw + b"'>", label) == f"<img alt='{raw.decode(codec)}'>"
    assert text_of("<p>© 2008 é".encode(), "iso-8859-1") == "<p>© 2008 é"
    assert text_of("<img alt='犬'>".encode(), label) == "<img alt='犬'>"


def test_the_encodings_browsers_refuse():
    assert decode_page("<img alt='狗'>".encode("hz"), "hz-gb-2312") is None
    assert decode_page("<img alt='개'>".encode("iso2022_kr"), "iso-2022-kr") is None
    assert text_of(b"<img alt='a dog'>", "iso-2022-kr") == "<img alt='a dog'>"


def test_japanese_mail_under_a_false_name():
    page = JAPANESE.encode("iso2022_jp")
    for header in (None, "utf-8", "iso-2022-jp"):
        assert text_of(page, header) == JAPANESE


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(codec):
    assert text_of("<p>a dog, 犬".encode(codec)) == "<p>a dog, 犬"


@pytest.mark.parametrize(
    "declaration",
    [
        "<?xml version='1.0' encoding='windows-1251'?><html>",
        "<meta charset = 'windows-1251'>",
        "<META content='text/html;charset=windows-1251' http-equiv='content-type'>",
        "<!-- <meta charset=utf-8> --><meta charset=cp1251>",
        "<title>x</title>" + " " * 1_500 + "<meta charset=windows-1251>",
    ],
)
def test_declarations_are_found(declaration):
    page = declaration + "<p>пёс"
    decoded = decode_page(page.encode("cp1251"), None)
    assert decoded == (page, "windows-1251")


@given(st.binary(max_size=200), st.none() | st.text(max_size=12) | st.sampled_from(["euc-kr", "iso-2022-kr", "utf-16"]))
def test_any_bytes_have_a_text_that_can_be_encoded(page: bytes, charset: str | None):
    decoded = decode_page(page, charset)
    assert decoded is None or decoded.text.encode() is not None
