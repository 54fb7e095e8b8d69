"""Evaluation sets from strangers: each image is read or has a reason, whatever the names, and nothing large is read."""

import bz2
import gzip
import io
import lzma
import os
import resource
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dedup.errors import DedupError
from dedup.eval_sets import read, tars
from dedup.eval_sets.index import index_eval_set
from dedup.eval_sets.read import MAX_EXAMPLE_BYTES, Example, read_examples

GIGABYTE = 1 << 30


def write_tar(path: Path, members: list[tuple[str, bytes]], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def examples(kind: str, path: Path) -> list[tuple[str, str | None, bytes, str]]:
    return [(e.eval_id, e.label, e.encoded, e.failure) for e in read_examples(kind, str(path))]


def test_each_image_of_a_sample_is_an_example_with_its_own_label(tmp_path: Path) -> None:
    members = [
        ("a.left.jpg", b"1"), ("a.left.cls", b"cat"), ("a.right.jpg", b"2"), ("a.txt", b"both"),
        ("b.jpg", b"3"), ("b.seg.png", b"4"), ("b.cls", b"dog"),
        ("c.JPG", b"5"), ("c.png", b"6"),
        ("d.v1.2.avif", b"7"), ("d.v1.2.cls", b"bird"),
    ]  # fmt: skip
    assert examples("webdataset", write_tar(tmp_path / "t.tar", members)) == [
        ("t/a.left.jpg", "cat", b"1", ""),
        ("t/a.right.jpg", "both", b"2", ""),
        ("t/b.jpg", "dog", b"3", ""),
        ("t/b.seg.png", None, b"4", ""),  # the label is that of b.jpg; a mask shows no dog
        ("t/c.JPG", None, b"5", ""),
        ("t/c.png", None, b"6", ""),
        ("t/d", "bird", b"7", ""),
    ]


def test_a_name_that_comes_again_is_numbered(tmp_path: Path) -> None:
    members = [("k.png", b"1"), ("k.png", b"2"), ("x.png", b"3"), ("k.png", b"4"), ("x#2.png", b"5"), ("x.png", b"6")]
    assert [e[:3:2] for e in examples("webdataset", write_tar(tmp_path / "t.tar", members))] == [
        ("t/k.png", b"1"),
        ("t/k.png#2", b"2"),
        ("t/x", b"3"),
        ("t/k", b"4"),
        ("t/x#2", b"5"),
        ("t/x#3", b"6"),
    ]
    with gzip.open(tmp_path / "t.tar.gz", "wb") as file:
        file.write((tmp_path / "t.tar").read_bytes())
    names = [e[0] for e in examples("webdataset", tmp_path)]
    assert len(set(names)) == 12


def test_hidden_files_links_and_devices_of_a_tar_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind in [
            ("._0.jpg", tarfile.REGTYPE), ("0.jpg", tarfile.REGTYPE), ("._0.cls", tarfile.REGTYPE),
            ("0.cls", tarfile.REGTYPE), ("__MACOSX/._0.jpg", tarfile.REGTYPE), ("soft.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE), ("pipe.jpg", tarfile.FIFOTYPE), ("zero.jpg", tarfile.CHRTYPE),
            ("folder.jpg", tarfile.DIRTYPE),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.jpg"
            info.size = 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"cat"))
    found = examples("webdataset", tmp_path / "t.tar")
    assert [e for e in found if not e[3]] == [("t/0", "cat", b"cat", "")]
    others = ["._0.jpg", "._0.cls", "__MACOSX/._0.jpg", "soft.jpg", "hard.jpg", "pipe.jpg", "zero.jpg"]
    assert sorted(e[0] for e in found if e[3] == "other_file") == sorted(f"t/{name}" for name in others)


LONG, LONGER = "d" * 150, "/".join(["d" * 90, "e" * 90, "f" * 90, "n" * 200])


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("folder", [LONG, LONGER, "/".join(["p" * 99] * 40), "ü/写真", "caf\udce9", "犬"])
def test_names_of_any_length_and_alphabet_are_whole(tmp_path: Path, tar_format: int, folder: str) -> None:
    """Long names take headers of their own, written differently by POSIX (pax) and GNU tar."""
    members = [(f"{folder}/0.png", b"1"), (f"{folder}/0.cls", b"cat"), (f"{folder}/1.png", b"2")]
    shown = folder.replace("\udce9", "\\xe9")
    assert examples("webdataset", write_tar(tmp_path / "t.tar", members, tar_format)) == [
        (f"t/{shown}/0", "cat", b"1", ""),
        (f"t/{shown}/1", None, b"2", ""),
    ]


def test_names_in_another_encoding_are_escaped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.GNU_FORMAT, encoding="shift_jis") as tar:
        for name in ("犬.png", "犬.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"1"))
    assert examples("webdataset", tmp_path / "t.tar") == [("t/\\x8c\\xa2", "1", b"1", "")]


def test_pax_headers_for_all_and_with_attributes_change_nothing_but_the_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 900}) as tar:
        info = tarfile.TarInfo("0.png")
        info.size, info.mtime, info.uid = 3, 1.5, 1 << 40
        info.pax_headers = {"path": "dög.png", "SCHILY.xattr.user.note": "size=9", "LIBARCHIVE.xattr.user.x": "eA=="}
        tar.addfile(info, io.BytesIO(b"dog"))
    assert examples("webdataset", tmp_path / "t.tar") == [("t/dög", None, b"dog", "")]


def _run_tar(folder: Path, *arguments: str) -> Path:
    made = folder.parent / "t.tar"
    subprocess.run(["tar", *arguments, "-cf", str(made), "-C", str(folder), "."], check=True, capture_output=True)
    return made


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar", "v7"])
@pytest.mark.parametrize("sparse", [(), ("-S",), ("-S", "--sparse-version=0.0"), ("-S", "--sparse-version=0.1")])
def test_every_form_of_gnu_tar_is_read(tmp_path: Path, form: str, sparse: tuple[str, ...]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    contents = {"0.png": b"a dog", "1.png": b"a cat" + bytes(1 << 20), "2.png": b"x".rjust(1 << 20, b"\0")}
    if form in ("gnu", "oldgnu", "pax"):
        contents["n" * 180 + ".png"] = b"long"
    for name, content in contents.items():
        with (folder / name).open("wb") as file:  # with a hole where there are zeros
            file.seek(len(content) - len(content.lstrip(b"\0")))
            file.write(content.strip(b"\0"))
            file.truncate(len(content))
    (folder / "1.cls").write_text("cat")
    os.symlink("0.png", folder / "8soft.png")
    os.link(folder / "0.png", folder / "9hard.png")
    if form not in ("gnu", "pax") or (sparse[1:] and form != "pax"):
        sparse = sparse[:0] if form != "gnu" else sparse[:1]
    tar = _run_tar(folder, "--sort=name", f"--format={form}", *sparse)
    found = examples("webdataset", tar)
    assert {e[0].removeprefix("t/./"): (e[1], e[2]) for e in found if not e[3]} == {
        name.removesuffix(".png"): ("cat" if name == "1.png" else None, content) for name, content in contents.items()
    }
    assert [e[0] for e in found if e[3] == "other_file"] == ["t/./8soft.png", "t/./9hard.png"]
    assert len(found) == len(contents) + 2


def test_a_packed_tar_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "t.tar", [("0.png", b"1")]).read_bytes()
    (tmp_path / "t.tar").write_bytes(gzip.compress(plain))
    assert examples("webdataset", tmp_path / "t.tar") == [("t/0", None, b"1", "")]
    (tmp_path / "u.tar.gz").write_bytes(plain)
    assert examples("webdataset", tmp_path / "u.tar.gz") == [("u/0", None, b"1", "")]
    for packed, name in ((bz2.compress(plain), "bzip2"), (lzma.compress(plain), "xz")):
        (tmp_path / "t.tar").write_bytes(packed)
        with pytest.raises(DedupError, match=f"t.tar: compressed by {name}; .* unpack it"):
            examples("webdataset", tmp_path / "t.tar")


def test_a_tar_whose_names_all_have_dots_is_not_held_as_one_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = []
    for number in range(30):
        members += [(f"frame.{number}.jpg", bytes([number]) * 100), (f"frame.{number}.cls", b"%d" % number)]
    whole = examples("webdataset", write_tar(tmp_path / "t.tar", members))
    monkeypatch.setattr(tars, "MAX_SAMPLE_BYTES", 350)
    with open(tmp_path / "t.tar", "rb") as stream:
        parts = [sample.members for sample in tars.read_samples(stream, "r:", lambda suffix: 1 << 20)]
    assert max(map(len, parts)) < 12
    assert examples("webdataset", tmp_path / "t.tar") == whole
    assert whole[7] == ("t/frame.7.jpg", "7", bytes([7]) * 100, "")


def sparse_tar(path: Path, size: int) -> Path:
    """A tar of one GNU sparse file (old format): a hole of `size` bytes behind one block."""
    info = tarfile.TarInfo("hole.jpg")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[482] = 0
    header[483:495] = b"%011o\0" % size
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    path.write_bytes(bytes(header) + b"x" * 512 + good_member("good.jpg") + bytes(1024))
    return path


def good_member(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = 4
    return info.tobuf() + b"good".ljust(512, b"\0")


@pytest.fixture
def little_memory():
    """Half a gigabyte more than there is: whoever reads what a header announces fails."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + GIGABYTE // 2, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.usefixtures("little_memory")
def test_a_sparse_file_of_gigabytes_is_too_large_and_the_next_is_read(tmp_path: Path) -> None:
    tar = sparse_tar(tmp_path / "t.tar", 3 * GIGABYTE)
    assert tar.stat().st_size < 4_000
    assert examples("webdataset", tar) == [("t/hole", None, b"", "too_large"), ("t/good", None, b"good", "")]


def huge(name: str, kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_that_announces_200_gigabytes_is_one_line(tmp_path: Path, kind: bytes, packed: bool) -> None:
    content = good_member("good.jpg") + huge("a.jpg", kind, 200 * GIGABYTE) + bytes(4096)
    path = tmp_path / ("t.tar.gz" if packed else "t.tar")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=r"t\.tar.*damaged tar file \(.*copy it again") as caught:
        examples("webdataset", path)
    assert "\n" not in str(caught.value)


def test_a_pax_header_that_leads_backwards_does_not_loop(tmp_path: Path) -> None:
    record = b"16 size=-100000\n"
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    path = tmp_path / "t.tar"
    path.write_bytes(info.tobuf() + record.ljust(512, b"\0") + good_member("a.jpg") * 300 + bytes(1024))
    with pytest.raises(ValueError, match="damaged tar file"):
        examples("webdataset", path)


@pytest.mark.usefixtures("little_memory")
def test_a_packed_image_of_a_gigabyte_is_too_large(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.tar.gz", "wb", compresslevel=1) as file:
        info = tarfile.TarInfo("zeros.jpg")
        info.size = GIGABYTE // 4
        file.write(info.tobuf())
        for _ in range(GIGABYTE // 4 >> 20):
            file.write(bytes(1 << 20))
        file.write(good_member("good.jpg") + bytes(1024))
    found = examples("webdataset", tmp_path / "t.tar.gz")
    assert [e[3] for e in found] == ["too_large", ""]


def test_large_files_of_a_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "small.png").write_bytes(b"png")
    for name, size in (("limit.png", MAX_EXAMPLE_BYTES), ("large.png", MAX_EXAMPLE_BYTES + 1), ("vast.png", 1 << 40)):
        with open(tmp_path / name, "wb") as file:
            try:
                file.truncate(size)
            except OSError:  # not every file system has files that large
                file.truncate(4 * GIGABYTE)
    assert {e[0]: e[3] for e in examples("folder", tmp_path)} == {
        "small.png": "",
        "limit.png": "",
        "large.png": "too_large",
        "vast.png": "too_large",
    }


@pytest.mark.timeout(60)
def test_only_regular_files_of_a_folder_are_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"png")
    root = tmp_path / "in"
    root.mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "endless.png").symlink_to("/dev/zero")
    (root / "nowhere.png").symlink_to(tmp_path / "gone")
    (root / "round.png").symlink_to(root / "round.png")
    (root / "good.png").symlink_to(tmp_path / "elsewhere")
    (root / "folder.png").symlink_to(tmp_path)
    found = examples("folder", root)
    assert [e for e in found if not e[3]] == [("good.png", None, b"png", "")]
    assert {e[3] for e in found if e[0] != "good.png"} == {"other_file"}
    assert len(found) == 6


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_pipe_or_a_device_is_not_read_as_a_set(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "t.tar")
    os.mkfifo(tmp_path / "t.parquet")
    for path in (tmp_path, tmp_path / "t.tar", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            examples(kind, path)


def test_names_that_are_not_utf_8_are_escaped_and_their_images_read(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(image, "PNG")
    folder = os.fsencode(tmp_path / "in")
    os.makedirs(folder + b"/caf\xe9")
    with open(folder + b"/caf\xe9/\xff.png", "wb") as file:
        file.write(image.getvalue())
    with open(folder + b"/caf\xe9/gr\xc3\xbcn.png", "wb") as file:
        file.write(image.getvalue())
    assert [e[:2] for e in examples("folder", tmp_path / "in")] == [
        ("caf\\xe9/gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n.png", "caf\\xe9"),
        ("caf\\xe9/\\xff.png", "caf\\xe9"),
    ]
    assert index_eval_set("set", "folder", tmp_path / "in", tmp_path / "out").indexed == 2
    tar = write_tar(tmp_path / "t.tar", [("\udcff.png", image.getvalue()), ("a.png", b""), ("a.cls", b"\xff")])
    assert [e[:2] for e in examples("webdataset", tar)] == [("t/\\xff", None), ("t/a", "\N{REPLACEMENT CHARACTER}")]
    assert index_eval_set("set", "webdataset", tar, tmp_path / "out").counts()["inputs"] == 2


@pytest.mark.parametrize("label", ['{"label": "\\ud800"}', '{"label": "a\\u0000b"}', "[" * 100_000, "9" * 5_000, "{"])
def test_labels_that_are_no_text_do_not_stop_the_set(tmp_path: Path, label: str) -> None:
    tar = write_tar(tmp_path / "t.tar", [("a.png", b"x"), ("a.json", label.encode())])
    [example] = examples("webdataset", tar)
    assert example[1] in (None, "\\ud800", "a\0b")


def test_a_label_of_a_megabyte_and_more_is_not_read(tmp_path: Path) -> None:
    tar = write_tar(
        tmp_path / "t.tar", [("a.png", b"x"), ("a.cls", b"c" * (read.MAX_LABEL_BYTES + 1)), ("a.txt", b"t")]
    )
    assert examples("webdataset", tar) == [("t/a", "t", b"x", "")]


@pytest.mark.usefixtures("little_memory")
def test_a_small_table_that_unpacks_to_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    one = bytes(MAX_EXAMPLE_BYTES // 8)
    with pq.ParquetWriter(
        tmp_path / "t.parquet", pa.schema([("image", pa.binary())]), compression="zstd", use_dictionary=False
    ) as writer:
        writer.write_table(pa.table({"image": pa.array([one] * 16)}))
    assert (tmp_path / "t.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"t\.parquet: .*a page of 134,21"):
        examples("parquet", tmp_path / "t.parquet")


def test_images_of_a_table_have_a_limit_each_and_nulls_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MAX_EXAMPLE_BYTES", 3)
    contents = [b"123", b"1234", b"", None]
    expected = [(b"123", ""), (b"", "too_large"), (b"", "no_image"), (b"", "no_image")]
    structs = [{"bytes": c, "path": "p"} for c in contents] + [None]
    for column in (pa.array(contents), pa.array(contents, pa.large_binary()), pa.array(structs)):
        pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
        found = [e[2:] for e in examples("parquet", tmp_path / "t.parquet")]
        assert found == expected + expected[3:] * (len(column) - 4)


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), cut=st.integers(0, 10_000))
@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "t.parquet"])
def test_damaged_sets_are_examples_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[int, int]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / name
    if name == "t.parquet":
        pq.write_table(pa.table({"image": [b"1" * 100] * 20, "label": [*range(20)]}), path)
    else:
        write_tar(folder / "t.tar", [(f"{n}.{kind}", b"7" * 300) for n in range(3) for kind in ("jpg", "cls", "json")])
        if name == "t.tar.gz":
            path.write_bytes(gzip.compress((folder / "t.tar").read_bytes()))
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[place % len(content)] = value
    path.write_bytes(content[: len(content) - cut % len(content)])
    told = ""
    try:
        assert all(
            isinstance(e, Example) for e in read_examples("parquet" if "pa" in name else "webdataset", str(path))
        )
    except ValueError as error:
        told = str(error)
    assert not told or (told.startswith(str(path)) and "\n" not in told)
