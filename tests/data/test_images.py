import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfdet.data.images import decode, decoded_sizes, load_image, orientation
from tfdet.data.transforms import SSDAugmentation
from tfdet.data.validation import Problems, check_image
from tfdet.resizers import Warp

# A smooth picture, 96 x 64, none of whose flips and turns look like it. (TensorFlow decodes JPEG with the fast of the
# two integer transforms, Pillow with the exact one: they are up to 16 of 255 apart, 1 or 2 on average.)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
PHOTO = Image.fromarray(PIXELS).resize((96, 64), Image.Resampling.BICUBIC)


def encode(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def as_pillow_shows(encoded):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")).astype(int)


def exif(turn, order="<", kind=3, before=()):
    """The payload of a JPEG's APP1 segment with an orientation of this value and type, behind other tags."""
    tags = [struct.pack(order + "HHII", tag, 4, 1, 0) for tag in before]
    tags.append(struct.pack(order + ("HHIHH" if kind == 3 else "HHII"), 0x0112, kind, 1, turn, *[0] * (kind == 3)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return b"Exif\0\0" + head + struct.pack(order + "H", len(tags)) + b"".join(tags) + bytes(4)


def ycck():
    """Adobe's other way to store CMYK: the marker says 2 for it. The colours come out odd, for Pillow as for us."""
    encoded = bytearray(encode(PHOTO.convert("CMYK"), quality=95))
    encoded[encoded.index(b"Adobe") + 11] = 2
    return bytes(encoded)


LIKE_PILLOW = {
    "baseline": encode(PHOTO, quality=95),
    "progressive": encode(PHOTO, quality=95, progressive=True),
    "full chroma": encode(PHOTO, quality=95, subsampling=0),
    "grey jpeg": encode(PHOTO.convert("L")),
    "cmyk jpeg": encode(PHOTO.convert("CMYK")),
    "ycck jpeg": ycck(),
    "bytes behind the jpeg": encode(PHOTO, subsampling=0) + b"a film" * 99,
    "grey with alpha": encode(PHOTO.convert("LA"), "PNG"),
    "alpha": encode(Image.merge("RGBA", [*PHOTO.split(), PHOTO.convert("L")]), "PNG"),
    "palette": encode(PHOTO.quantize(16), "PNG"),
    "palette with a transparent colour": encode(PHOTO.quantize(16), "PNG", transparency=3),
    "one bit": encode(PHOTO.convert("1"), "PNG"),
    "bmp": encode(PHOTO, "BMP"),
    "grey bmp": encode(PHOTO.convert("L"), "BMP"),
    "bmp with a palette": encode(PHOTO.quantize(16), "BMP"),
    "bmp of 32 bits": encode(PHOTO.convert("RGBA"), "BMP"),
    "gif": encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "1x1": encode(Image.new("RGB", (1, 1), (200, 100, 50))),
}


@pytest.mark.parametrize("encoded", LIKE_PILLOW.values(), ids=LIKE_PILLOW)
def test_decodes_as_pillow_does(encoded):
    difference = np.abs(load_image(encoded) - as_pillow_shows(encoded))
    if encoded.startswith(b"\xff\xd8"):
        assert difference.mean() < 2 and difference.max() <= 16
    else:
        assert difference.max() == 0


def test_of_16_bits_the_upper_8_are_kept():
    deep = np.arange(6 * 256, dtype=np.uint16).reshape(6, 256) * 37
    shown = load_image(encode(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(shown, np.repeat((deep >> 8)[..., None], 3, axis=-1))


# --- photographs that a camera marked as turned ---


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", range(10))  # 0 and 9 mean nothing
def test_photographs_are_shown_upright(turn, order):
    encoded = encode(PHOTO, quality=95, subsampling=0, exif=exif(turn, order, before=(0x010F, 0x0110)))
    shown = load_image(encoded)
    assert shown.shape == ((96, 64, 3) if 5 <= turn <= 8 else (64, 96, 3))
    np.testing.assert_allclose(shown, as_pillow_shows(encoded), atol=16)


def jpeg_with(payload):
    return encode(PHOTO, exif=payload)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (encode(PHOTO), 1),
        (jpeg_with(exif(6)), 6),
        (jpeg_with(exif(6, kind=4)), 1),  # of the wrong type
        (jpeg_with(exif(6)[:14]), 1),  # cut off before the first tag
        (jpeg_with(b"Exif\0\0"), 1),
        (jpeg_with(b"Exif\0\0MM\0*\xff\xff\xff\xff"), 1),  # a directory far outside
        (jpeg_with(b"Exif\0\0II*\0\x08\0\0\0\xff\xff"), 1),  # 65,535 tags
        (encode(PHOTO, "PNG", exif=exif(6)[6:]), 1),  # JPEG only
        (b"", 1),
        (b"\xff\xd8Exif\0\0", 1),
    ],
)
def test_what_is_no_orientation_turns_nothing(encoded, expected):
    assert orientation(encoded) == expected


def test_decodes_in_a_pipeline():
    images = [encode(PHOTO), encode(PHOTO, exif=exif(6)), encode(PHOTO, "PNG"), encode(PHOTO.quantize(16), "BMP")]
    found = [image.shape for image in tf.data.Dataset.from_tensor_slices(images).map(decode)]
    assert found == [(64, 96, 3), (96, 64, 3), (64, 96, 3), (64, 96, 3)]


def test_a_served_model_sees_photographs_upright(exported):
    """Serving decodes with the same function; here from within the SavedModel."""
    detect = tf.saved_model.load(exported / "1").signatures["serving_default"]
    turned = encode(PHOTO, exif=exif(6))
    found = detect(tf.constant([turned, encode(Image.fromarray(load_image(turned)), "PNG")]))
    for values in found.values():
        np.testing.assert_allclose(values[0], values[1], atol=1e-3)


# --- the size in the header ---


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_is_that_of_the_image_as_it_is_shown(tmp_path, turn):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(PHOTO, exif=exif(turn)))
    height, width, _ = load_image(str(path)).shape
    assert check_image(Problems("raise"), "FILE: image 7", str(path)) == (width, height)
    assert check_image(Problems("raise"), "FILE: image 7", str(path), width, height) == (width, height)


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ((96, 64), "for 96x64 pixels, image file {} has 64x96 once its EXIF orientation 6 is applied"),
        ((99, 64), "for 99x64 pixels, image file {} has 64x96"),
    ],
)
def test_annotations_for_another_size_are_a_defect(tmp_path, stated, fault):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(PHOTO, exif=exif(6)))
    problems = Problems("skip")
    assert check_image(problems, "FILE: image 7", str(path), *stated) is None
    (line,) = problems.lines
    assert line.startswith("FILE: image 7: the annotations are " + fault.format(path))


# --- images that cannot be decoded ---

BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"a text file named .jpg", "Unknown image file format"),
    "truncated jpeg": (encode(PHOTO)[:-100], "Invalid JPEG data"),
    "truncated progressive jpeg": (encode(PHOTO, progressive=True)[:-100], "Invalid JPEG data"),
    "truncated png": (encode(PHOTO, "PNG")[:-100], "Invalid PNG data"),
    "truncated gif": (encode(PHOTO, "GIF")[:-100], "Invalid GIF data"),
    "truncated bmp": (encode(PHOTO, "BMP")[:-100], "differ by -100"),
    "tiff": (encode(PHOTO, "TIFF"), "Unknown image file format"),
}


def test_broken_images_are_told_from_sound_ones(tmp_path):
    path = tmp_path / "sound.jpg"
    path.write_bytes(encode(PHOTO, exif=exif(6)))
    images = [str(path), *(encoded for encoded, _ in BROKEN.values()), str(tmp_path / "gone.jpg"), encode(PHOTO, "PNG")]
    first, *reasons, gone, last = decoded_sizes(images)
    assert (first, last) == ((64, 96), (96, 64))
    assert "gone.jpg" in gone
    for reason, (_, expected) in zip(reasons, BROKEN.values(), strict=True):
        assert expected in reason
        assert "\n" not in reason and "node" not in reason and "Op:" not in reason


def test_an_image_of_108_million_pixels(tmp_path):
    path = tmp_path / "huge.jpg"
    Image.new("L", (12000, 9000), 90).save(path)
    assert check_image(Problems("raise"), "FILE: image 7", str(path)) == (12000, 9000)
    image = decode(path.read_bytes())
    assert image.shape == (9000, 12000, 3)
    fed, boxes, labels = SSDAugmentation(32)(image, tf.constant([[10.0, 10, 11000, 8000]]), tf.constant([2]), (1, 2))
    assert fed.shape == (32, 32, 3) and boxes.shape == (len(labels), 4)


def test_an_image_of_one_pixel():
    image = decode(LIKE_PILLOW["1x1"])
    for seed in range(8):
        fed, boxes, _ = SSDAugmentation(32)(image, tf.constant([[0.0, 0, 1, 1]]), tf.constant([2]), (1, seed))
        assert fed.shape == (32, 32, 3)
        assert np.isfinite(fed).all() and np.isfinite(boxes).all()
    assert Warp(32)(image).shape == (32, 32, 3)
