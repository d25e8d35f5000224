"""Images are read as Detectron2 reads them, and what that reads wrong is right or refused."""

import os
import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pytest
from detectron2.data import detection_utils
from detectron2.utils import logger
from PIL import Image, ImageSequence, TiffImagePlugin

from gnws_d2.data import image_size, read_frames, read_image, read_labels
from gnws_d2.data.images import ORIENTATION
from gnws_d2.errors import DatasetError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L", "YUV-BT.601", None])
@pytest.mark.parametrize(
    "mode",
    ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "YCbCr", "I", "F"],  # of 32 bits: levels
)
def test_it_is_detectron2s(tmp_path, mode, format):
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "I": "tif", "F": "tif"}.get(mode, "png")
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(PIXELS).convert(mode).save(file)
    expected = detection_utils.read_image(str(file), format)
    found = read_image(file, format)
    assert found.dtype == expected.dtype and (found == expected).all()
    assert image_size(file) == (30, 20, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    file = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(file, exif=exif)
    found = read_image(str(file), "BGR")
    assert (found == detection_utils.read_image(str(file), "BGR")).all()
    assert (found == cv2.imread(str(file))).all()
    assert image_size(file) == (found.shape[1], found.shape[0], orientation)


@pytest.mark.parametrize("format", ["BGR", "L"])
@pytest.mark.parametrize("name", ["a.png", "a.pgm", "big.tif", "little.tif"])
def test_sixteen_bits_are_scaled(tmp_path, name, format):
    """Of any order of bytes; those of TIFF are turned by EXIF."""
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    data, exif = values.astype(">u2").tobytes(), Image.Exif()
    exif[ORIENTATION] = 6
    (tmp_path / "a.pgm").write_bytes(b"P5 30 20 65535\n" + data)
    big = Image.frombytes("I;16B", (30, 20), data)
    big.save(tmp_path / "big.tif", big_endian=True, exif=exif)
    Image.fromarray(values).save(tmp_path / "little.tif", exif=exif)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.rot90(values, -1 if name.endswith("tif") else 0)
    found = read_image(tmp_path / name, format)
    assert found.dtype == np.uint8 and found.shape == (*expected.shape, 3 if format == "BGR" else 1)
    assert np.abs(found - expected[..., None] / 257).max() <= 0.5
    assert image_size(tmp_path / name)[:2] == expected.shape[::-1]
    if name == "a.png":  # OpenCV takes the high byte
        assert np.abs(found - cv2.imread(str(tmp_path / name)).astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("channels", "highest", "said"),
    [(1, 1664, "2.5%"), (1, 4095, "6.2%"), (3, 4095, "5.9%"), (4, 4095, "5.9%")],
)
def test_sixteen_bits_that_are_nearly_black_are_named_once(
    tmp_path, caplog, monkeypatch, channels, highest, said, suffix
):
    """Of colors, Pillow reads the high bytes."""
    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())
    values = np.linspace(0, highest, 600).astype(np.uint16).reshape(20, 30, 1)
    alpha = np.full((20, 30, 1), 65535, np.uint16)
    for name, factor in (("black", 0), ("bright", 16), ("dark", 1), ("dark too", 1)):
        pixels = np.dstack([values * factor] * min(channels, 3) + [alpha] * (channels == 4))
        cv2.imwrite(str(tmp_path / f"{name}.{suffix}"), pixels)
        read_image(tmp_path / f"{name}.{suffix}", "BGR")
    [record] = caplog.records
    assert f"dark.{suffix} has 16 bits, but its brightest pixel is {said}" in record.getMessage()


MODES = [("gif", "P"), ("gif", "RGBA"), ("webp", "RGBA"), ("avif", "RGB")]
MODES += [(kind, mode) for kind in ("png", "tif") for mode in ("RGB", "P", "LA", "RGBA", "I;16")]


@pytest.mark.parametrize("format", ["BGR", "L", "RGBA"])
@pytest.mark.parametrize(("kind", "mode"), MODES)
def test_each_frame_is_the_image_of_its_pixels(tmp_path, kind, mode, format):
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[ORIENTATION] = 6
    pixels = rng.integers(0, 65536, (3, 20, 30), dtype=np.uint16)
    if mode != "I;16":
        pixels = rng.integers(0, 256, (3, 20, 30, 4), dtype=np.uint8)
    first, *others = (Image.fromarray(frame) for frame in pixels)
    if mode not in ("I;16", "RGBA"):
        first, *others = (f.convert("RGB").convert(mode) for f in (first, *others))
    turned = {"exif": exif} if kind in ("png", "webp") else {}
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=others, **turned)
    frames = read_frames(tmp_path / f"a.{kind}", format)
    with Image.open(tmp_path / f"a.{kind}") as file:
        for number, image in enumerate(ImageSequence.Iterator(file)):
            image.save(tmp_path / "still.png", exif=exif if turned else None)
            found, frame = next(frames)
            assert found == number and frame.shape[:2] == ((30, 20) if turned else (20, 30))
            assert (frame == read_image(tmp_path / "still.png", format)).all()
    assert number == 2 and next(frames, None) is None


def with_reduced_pages(file):
    with TiffImagePlugin.AppendingTiffWriter(file, new=True) as pages:
        for side, kind in ((1, 0), (2, 1), (2, 4)):
            small = Image.fromarray(PIXELS).resize((30 // side, 20 // side))
            small.save(pages, format="TIFF", tiffinfo={254: kind})
            pages.newFrame()


SMALL = {"save_all": True, "append_images": [Image.fromarray(PIXELS).resize((15, 10))]}


@pytest.mark.parametrize(
    "save",
    [
        lambda file: Image.fromarray(PIXELS).save(file, "MPO", **SMALL),
        lambda file: Image.fromarray(PIXELS).save(file, "PNG", default_image=True, **SMALL),
        lambda file: Image.fromarray(PIXELS).save(file, "ICO", sizes=[(30, 20), (15, 10)]),
        with_reduced_pages,
    ],
    ids=["MPO", "PNG", "ICO", "TIFF"],
)
def test_previews_are_no_frames(tmp_path, save):
    save(tmp_path / "a")
    [(number, found)] = read_frames(tmp_path / "a", "BGR")
    assert number is None and (found == read_image(tmp_path / "a", "BGR")).all()
    assert found.shape == (20, 30, 3)


def test_32_bit_pages_are_refused(tmp_path):
    pages = [Image.new("I", (4, 5), level) for level in (200, 70000)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DatasetError, match=r"a\.tif has 32-bit pixels \(mode I\) from 70000"):
        list(read_frames(tmp_path / "a.tif", "BGR"))


def test_sixteen_bits_a_channel(tmp_path):
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), PIXELS.astype(np.uint16) * 257)
    assert (read_image(file, "BGR") == PIXELS).all()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(file, width, height, bits, color, rows):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    data = header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def flipped(file):
    """One bit of the pixels, which only the checksum tells."""
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, compress_level=0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncated(file):
    Image.fromarray(PIXELS).save(file)
    file.write_bytes(file.read_bytes()[:-200])


def floats(file):
    Image.fromarray(PIXELS[..., 0] / np.float32(255)).save(file, format="TIFF")


BAD = [
    (lambda file: None, "does not exist"),
    (lambda file: file.mkdir(), "not a regular file"),
    (os.mkfifo, "not a regular file"),
    (lambda file: file.symlink_to("nowhere"), "does not exist"),
    (lambda file: file.write_bytes(b""), "cannot be read"),
    (lambda file: file.write_text("<html>"), "cannot be read"),
    (truncated, "cannot be read"),
    (flipped, "cannot be read"),
    (lambda file: png(file, 20000, 10000, 8, 2, b""), r"more than 179 million pixels\. Cut"),
    (floats, r"32-bit pixels \(mode F\) from 0 to 1: the level of white is unknown"),
]


@pytest.mark.parametrize(("spoil", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_files_are_named(tmp_path, spoil, said):
    file = tmp_path / "a.png"
    spoil(file)
    with pytest.raises(DatasetError, match=rf"a\.png .*{said}") as caught:
        read_image(file, "BGR")
    assert "\n" not in str(caught.value)


LABELS = [("L", 255), ("P", 255), ("I;16", 65535), ("1", 1), ("RGB", 255)]
# Pillow spreads the levels of these over all of 8 or 16 bits.
LABELS += [(kind, highest) for kind in ("png", "tif") for highest in (3, 15)]
LABELS += [(kind, highest) for kind in ("P2", "P5") for highest in (3, 20, 300, 65535)]


@pytest.mark.parametrize(("kind", "highest"), LABELS)
def test_labels_are_what_is_stored(tmp_path, kind, highest):
    values = np.random.default_rng(0).integers(0, highest + 1, (5, 8))
    values[0, :2] = 0, highest
    file, bits, stored = tmp_path / "a.png", highest.bit_length(), "<u2" if highest > 255 else "u1"
    rows = [int("".join(f"{v:0{bits}b}" for v in row), 2).to_bytes(bits) for row in values]
    if kind == "P2":
        file.write_text(f"P2 8 5 {highest} {' '.join(map(str, values.ravel()))}")
    elif kind == "P5":
        data = values.astype(stored.replace("<", ">")).tobytes()
        file.write_bytes(f"P5 8 5 {highest}\n".encode() + data)
    elif kind == "png":
        png(file, 8, 5, bits, 0, b"".join(b"\0" + row for row in rows))
    elif kind == "tif":  # width, height, bits, compression, photometric, offset, channels, rows
        entries = {256: 8, 257: 5, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: 5, 279: 5 * bits}
        packed = b"".join(struct.pack("<HHII", tag, 4, 1, n) for tag, n in entries.items())
        start = struct.pack("<2sHI", b"II", 42, 8 + 5 * bits) + b"".join(rows)
        file.write_bytes(start + struct.pack("<H", 9) + packed + b"\0" * 4)
    else:
        image = Image.fromarray((values * (255 if kind == "1" else 1)).astype(stored))
        if kind == "P":
            image.putpalette(list(range(255, -1, -1)) * 3)
        # Grays that are stored as colors are labels to Detectron2 too.
        (image.convert(kind) if kind in ("1", "RGB") else image).save(file)
    found = read_labels(file)
    assert found.dtype == np.int64 and (found == values).all()


def test_colors_are_no_labels(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png has mode RGB, colors instead"):
        read_labels(tmp_path / "a.png")
