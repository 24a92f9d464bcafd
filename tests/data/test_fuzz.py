"""Whatever the bytes of a data set are: only tfdet's own errors, each in one line, and nothing bad is kept."""

import copy
import io
import json
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from tfdet.data import load_dataset, split_names
from tfdet.data.convert import write_shards
from tfdet.data.images import load_image
from tfdet.errors import TfdetError

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
fewer = settings(few, max_examples=20)  # of what takes longer to read


def encode(mode, format, **options):
    file = io.BytesIO()
    Image.effect_noise((24, 18), 90).convert("RGB").convert(mode).save(file, format, **options)
    return file.getvalue()


TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
IMAGES = [
    encode("RGB", "JPEG"),
    encode("RGB", "JPEG", exif=TURNED),
    encode("RGB", "JPEG", progressive=True),
    encode("CMYK", "JPEG"),
    encode("RGBA", "PNG"),
    encode("P", "PNG"),
    encode("L", "BMP"),
    encode("P", "BMP"),
    encode("RGB", "GIF"),
]
XML = """<annotation><filename>a.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>
</object></annotation>"""
CSV = "path,x1,y1,x2,y2,label,split\na.png,1,2,30,40,cat,train\na.png,5,5,9,9,dog,train\nb.png,,,,,,train\n"
COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 120.5, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 5, "bbox": [0, 0, 64, 48], "area": 3000, "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
}
for annotation, segmentation in zip(
    COCO["annotations"],
    ([[1, 2, 11, 8, 6.5, 22], [3, 3, 5, 3, 4, 5]], {"size": [48, 64], "counts": [96, 48, 0, 48, 2880]}),
    strict=True,
):
    annotation["segmentation"] = segmentation
COCO["annotations"].append(
    COCO["annotations"][0] | {"id": 3, "segmentation": {"size": [48, 64], "counts": "P3`100Pj2"}}
)
FEATURES = {  # of 24x18 pixels
    "image/encoded": IMAGES[:1],
    "image/source_id": [b"7"],
    "image/filename": [b"a.jpg"],
    "image/height": [18],
    "image/width": [24],
    "image/object/bbox/xmin": [0.25, 0.5],
    "image/object/bbox/xmax": [0.75, 1.0],
    "image/object/bbox/ymin": [0.5, 0.0],
    "image/object/bbox/ymax": [1.0, 0.25],
    "image/object/class/text": [b"dog", b"cat"],
    "image/object/class/label": [2, 1],
    "image/object/difficult": [0, 1],
    "image/object/is_crowd": [1, 0],
    "image/object/area": [40.5, 20.0],
}
LABEL_MAP = '# classes\nitem { id: 1 name: \'cat\' }\nitem {\n  id: 2\n  name: "n02" display_name: "dog"\n}\n'


def record(features):
    """A serialised tf.train.Example of lists of bytes, whole numbers or floats."""
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if values and isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif values and isinstance(values[0], int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return example.SerializeToString()


def shard(records):
    with tempfile.NamedTemporaryFile() as file:
        with tf.io.TFRecordWriter(file.name) as writer:
            for one in records:
                writer.write(one)
        return file.read()


@st.composite
def damaged(draw, content):
    """Bytes with some of them replaced, left out, repeated or put in, and perhaps cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 12)))
        new = draw(st.binary(max_size=12) | st.just(bytes(content[at:to]) * 2))
        content[at:to] = new
    end = draw(st.just(len(content)) | st.integers(0, len(content)))
    return bytes(content[:end])


@st.composite
def changed_features(draw):
    """A record with some features of other values, of another kind, in another number, or left out."""
    features = dict(FEATURES)
    for name in draw(st.lists(st.sampled_from(sorted(FEATURES)), min_size=1, max_size=3)):
        floats = st.floats(width=32) | st.sampled_from([-0.5, 1.0, 1e30])
        kinds = st.just(FEATURES[name][0]), st.binary(max_size=9), st.integers(-(2**63), 2**63 - 1), floats
        features[name] = draw(st.one_of(*(st.lists(kind, max_size=3) for kind in kinds)))
    return record(features)


numbers = st.integers() | st.floats() | st.sampled_from([0, -1, 1e300, 2**31, 2**63, 10**400])
leaves = st.none() | st.booleans() | numbers | st.text(max_size=6)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=3))


@st.composite
def changed_json(draw):
    """COCO's JSON with some values replaced or left out."""
    content = copy.deepcopy(COCO)
    for _ in range(draw(st.integers(1, 3))):
        place = content
        while True:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.integers(0, 3)):
                place = place[key]
                continue
            if draw(st.booleans()):
                place[key] = draw(values)
            else:
                del place[key]
            break
    return json.dumps(content).encode()


@st.composite
def changed_text(draw, text, separators):
    """A text with some of what stands between separators replaced."""
    parts = []
    for character in text:
        if character in separators or not parts or parts[-1] in separators:
            parts.append(character)
        else:
            parts[-1] += character
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(parts) - 1))
        parts[at] = draw(numbers.map(str) | st.text(max_size=6) | st.sampled_from(parts))
    return "".join(parts).encode("utf-8", "surrogatepass")


def load(spec):
    """Load all splits in both ways."""
    try:
        splits = split_names(spec)
    except TfdetError as error:
        check_line(str(error))
        splits = ["train"]
    for split in splits:
        for on_error in ("raise", "skip"):
            try:
                dataset = load_dataset(spec, split, on_error)
            except TfdetError as error:
                check_line(str(error))
                continue
            for line in dataset.skipped:
                check_line(line)
            for example in dataset.examples:
                check_example(example, dataset.num_classes, decoded=on_error == "skip")


def check_line(line):
    assert line.isprintable()


def check_example(example, num_classes, decoded):
    size = (example.width, example.height) * 2
    assert np.isfinite(example.boxes).all()
    assert ((example.boxes >= 0) & (example.boxes <= size)).all()
    assert ((example.boxes[:, 2:] - example.boxes[:, :2]).prod(axis=1) > 0).all()
    assert ((example.labels >= 0) & (example.labels < num_classes)).all()
    if example.masks is not None:
        assert len(example.masks) == len(example.keypoints) == len(example.boxes)
        assert ((example.keypoints >= 0) & (example.keypoints <= (*size[:2], 2))).all()
        for mask in filter(None, example.masks):
            assert set(np.unique(coco_mask.decode(mask))) <= {0, 1}
            assert mask["size"] == [example.height, example.width]
    if decoded:
        assert load_image(example.image).shape == (example.height, example.width, 3)


@pytest.fixture
def folder(tmp_path):
    for part in (".", "images", "VOC/JPEGImages"):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (64, 48)).save(tmp_path / part / name)
    (tmp_path / "VOC" / "Annotations").mkdir()
    (tmp_path / "VOC" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "VOC" / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (tmp_path / "annotations").mkdir()
    return tmp_path


@few
@given(st.lists(st.sampled_from(IMAGES).flatmap(damaged), min_size=4, max_size=4))
def test_damaged_images(folder, images):
    for number, content in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(content)
    (folder / "boxes.csv").write_text("".join(f"{number}.jpg,1,2,9,9,cat,train\n" for number in range(len(images))))
    load(f"csv:{folder / 'boxes.csv'}")


@few
@given(changed_json() | damaged(json.dumps(COCO).encode()))
def test_damaged_json(folder, content):
    (folder / "annotations" / "instances_train.json").write_bytes(content)
    load(f"coco:{folder}")
    load(f"coco_masks:{folder}")


@few
@given(changed_text(XML, "<>") | damaged(XML.encode()))
def test_damaged_xml(folder, content):
    (folder / "VOC" / "Annotations" / "a.xml").write_bytes(content)
    load(f"voc:{folder / 'VOC'}")


@few
@given(changed_text(CSV, ",\n") | damaged(CSV.encode()))
def test_damaged_csv(folder, content):
    (folder / "boxes.csv").write_bytes(content)
    load(f"csv:{folder / 'boxes.csv'}")


@fewer
@given(damaged(shard([record(FEATURES)] * 3)))
def test_damaged_shards(folder, content):
    (folder / "train.tfrecord").write_bytes(content)
    load(f"tfrecord:{folder}")


@fewer
@given(st.lists(changed_features() | damaged(record(FEATURES)), min_size=1, max_size=3))
def test_damaged_records(folder, records):
    (folder / "train.tfrecord").write_bytes(shard([*records, record(FEATURES)]))
    load(f"tfrecord:{folder}")


@pytest.fixture
def converted(make_dataset, tmp_path):
    """A folder with a shard, its manifest and its index, and what they hold."""
    write_shards(make_dataset((48, 64, [(1, 2, 30, 40)], [0]), (48, 64, [], [])), tmp_path, "train")
    manifest, index = (tmp_path / f"train.{kind}" for kind in ("manifest.json", "index.npz"))
    return tmp_path, manifest, manifest.read_bytes(), index, index.read_bytes()


@fewer
@given(st.data())
def test_damaged_manifest_or_index(converted, data):
    """Whatever is damaged in them: an error that names the file, or the very same boxes."""
    folder, manifest, its_text, index, its_arrays = converted
    manifest.write_bytes(its_text)
    index.write_bytes(its_arrays)
    changed = data.draw(st.sampled_from((manifest, index)))
    changed.write_bytes(data.draw(damaged(changed.read_bytes())))
    try:
        dataset = load_dataset(f"tfrecord:{folder}")
    except TfdetError as error:
        check_line(str(error))
        assert "to read the shards themselves" in str(error)
    else:
        assert [example.image_id for example in dataset.examples] == ["image 0", "image 1"]
        assert dataset.examples[0].boxes.tolist() == [[1, 2, 30, 40]]


@fewer
@given(changed_text(LABEL_MAP, " \n") | damaged(LABEL_MAP.encode()))
def test_damaged_label_map(folder, content):
    (folder / "train.tfrecord").write_bytes(shard([record(FEATURES)]))
    (folder / "label_map.pbtxt").write_bytes(content)
    load(f"tfrecord:{folder}")
