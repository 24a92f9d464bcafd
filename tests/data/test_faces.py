"""The readers of annotated faces: WIDER FACE's lists, lists of five landmarks, dlib's XML."""

import numpy as np
import pytest
import scipy.io

from tfdet.data import load_dataset, split_names
from tfdet.errors import DataError
from tfdet.skeleton import FACE

# WIDER FACE


@pytest.fixture
def wider(tmp_path, draw_image):
    """A function (text of the list, split="val") -> spec; there are the images a/1.png, 60 x 40, and b/2.png."""
    for name in ("a/1.png", "b/2.png"):
        path = tmp_path / "WIDER_val" / "images" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(draw_image(40, 60, [], []))
    (tmp_path / "wider_face_split").mkdir()

    def write(text, name="wider_face_val_bbx_gt.txt"):
        (tmp_path / "wider_face_split" / name).write_text(text)
        return f"wider_face:{tmp_path}"

    return write


WIDER = """a/1.png
2
10 5 20 30 0 1 0 0 2 0
1 2 3.5 4 2 0 0 1 0 0
b/2.png
0
0 0 0 0 0 0 0 0 0 0
"""


def test_wider_face(wider):
    dataset = load_dataset(wider(WIDER), "val")
    assert dataset.class_names == ("face",)
    assert dataset.keypoint_names == ()
    first, second = dataset.examples
    assert (first.image_id, first.width, first.height) == ("a/1.png", 60, 40)
    np.testing.assert_array_equal(first.boxes, [(10, 5, 30, 35), (1, 2, 4.5, 6)])
    np.testing.assert_array_equal(first.crowd, [False, True])  # the second is invalid
    np.testing.assert_array_equal(first.labels, [0, 0])
    assert first.keypoints is None
    assert len(second.boxes) == 0


def test_wider_face_has_a_split_for_each_list(wider):
    spec = wider(WIDER)
    assert wider("b/2.png\n0\n", "other_bbx_gt.txt") == spec
    assert split_names(spec) == ("other", "val")
    assert [example.image_id for example in load_dataset(spec, "other").examples] == ["b/2.png"]
    with pytest.raises(DataError, match='no split "test" in wider_face_split; there are other, val'):
        load_dataset(spec, "test")


@pytest.mark.parametrize(
    ("text", "words", "left"),
    [
        ("a/1.png\n1\n5 5 0 7 0 0 0 0 0 0\n", 'image a/1.png: box 0 (5, 5, 5, 12) "face" (line 3): has zero area', 0),
        ("a/1.png\n2\n5 5 x 7\n1 1 9 9\n", 'image a/1.png: line 3: "5 5 x 7" is not x, y, width, height', 1),
        ("a/1.png\n2\n50 5 20 7\n1 1 9 9\n", 'box 0 (50, 5, 70, 12) "face" (line 3): leaves the image of 60x40', 2),
        ("a/1.png\n1\n1 1 nan 9\n", "has a coordinate that is not finite", 0),
        ("a/1.png\n1\n1 1 9 9\na/1.png\n1\n1 1 9 9\n", "line 4: image a/1.png occurs twice", 1),
    ],
)
def test_a_bad_line_of_wider_face_is_named(wider, text, words, left):
    spec = wider(text)
    with pytest.raises(DataError) as error:
        load_dataset(spec, "val")
    assert words in str(error.value)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert [words in line for line in dataset.skipped] == [True]
    assert sum(len(example.boxes) for example in dataset.examples) == left


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("a/1.png\n", 'line 2: "nothing" is not the number of faces in a/1.png'),
        ("a/1.png\nmany\n", 'line 2: "many" is not the number of faces in a/1.png'),
        ("a/1.png\n3\n1 1 9 9\n", "line 1: a/1.png has 1 of 3 faces"),
        ("a/1.png\n" + "9" * 5000 + "\n", "is not the number of faces"),
        ("a/3.png\n0\n", "there is no image file"),
    ],
)
def test_a_list_that_is_none_is_one_line(wider, text, words):
    with pytest.raises(DataError) as error:
        load_dataset(wider(text), "val")
    assert words in str(error.value)


def official_list(file, events):
    """A MATLAB file as those of the official evaluation: {event: {name of an image: numbers from 1}}."""

    def cells(values):
        column = np.empty((len(values), 1), object)
        column[:, 0] = values
        return column

    files = [cells(list(images)) for images in events.values()]
    chosen = [
        cells([np.array(numbers, np.uint8)[:, None] for numbers in images.values()]) for images in events.values()
    ]
    scipy.io.savemat(file, {"event_list": cells(list(events)), "file_list": cells(files), "gt_list": cells(chosen)})


THREE = """a/1.png
3
10 5 20 30 0 1 0 0 2 0
1 2 3.5 4 2 0 0 1 0 0
30 5 20 30 0 1 0 0 2 0
b/2.png
1
5 5 20 20 0 0 0 0 0 0
"""


def test_the_official_lists_say_which_faces_count(wider, tmp_path):
    spec = wider(THREE)
    official_list(tmp_path / "wider_face_split" / "wider_easy_val.mat", {"a": {"1": [3]}, "b": {"2": []}})
    official_list(tmp_path / "wider_face_split" / "wider_hard_val.mat", {"a": {"1": [1, 3]}, "b": {"2": [1]}})
    assert split_names(spec) == ("val", "val_easy", "val_hard")
    for split, crowds in (
        ("val", ([False, True, False], [False])),
        ("val_easy", ([True, True, False], [True])),
        ("val_hard", ([False, True, False], [False])),
    ):
        dataset = load_dataset(spec, split)
        assert dataset.name.endswith(f" {split}")
        for example, crowd in zip(dataset.examples, crowds, strict=True):
            np.testing.assert_array_equal(example.crowd, crowd)


def test_an_official_list_that_is_none_is_one_line(wider, tmp_path):
    spec = wider(THREE)
    (tmp_path / "wider_face_split" / "wider_easy_val.mat").write_bytes(b"not MATLAB")
    with pytest.raises(DataError, match=r"wider_easy_val\.mat: is not one of WIDER FACE's lists"):
        load_dataset(spec, "val_easy")
    scipy.io.savemat(tmp_path / "wider_face_split" / "wider_easy_val.mat", {"event_list": [1]})
    with pytest.raises(DataError, match="is not one of WIDER FACE's lists"):
        load_dataset(spec, "val_easy")


# Lists of landmarks

LINE = "{} 10 30 5 35 12 15 25 16 18.5 20 13 28 24 29"


@pytest.fixture
def listed(tmp_path, draw_image):
    """A function (lines) -> spec; there are the images in/0.png .. in/29.png, 60 x 40."""
    (tmp_path / "in").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i}.png").write_bytes(draw_image(40, 60, [], []))

    def write(lines):
        (tmp_path / "list.txt").write_text("\n".join(lines))
        return f"landmarks:{tmp_path / 'list.txt'}"

    return write


def test_a_list_of_landmarks(listed):
    spec = listed([LINE.format(f"in\\{i}.png") for i in range(30)] + [LINE.format("in/0.png")])
    datasets = {split: load_dataset(spec, split) for split in split_names(spec)}
    assert set(datasets) == {"train", "val", "test"}
    examples = {example.image_id: example for dataset in datasets.values() for example in dataset.examples}
    assert sorted(examples) == sorted(f"in/{i}.png" for i in range(30))
    assert all(dataset.keypoint_names == FACE for dataset in datasets.values())
    example = examples["in/1.png"]
    np.testing.assert_array_equal(example.boxes, [(10, 5, 30, 35)])
    places = [(12, 15, 2), (25, 16, 2), (18.5, 20, 2), (13, 28, 2), (24, 29, 2)]
    np.testing.assert_array_equal(example.keypoints, [places])
    assert len(examples["in/0.png"].boxes) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("in/1.png 10 30 5 35", '"in/1.png 10 30 5 35" is not path left right top bottom'),
        (LINE.format("in/1.png").replace("18.5", "x"), "is not path left right top bottom"),
        (LINE.format("in/1.png").replace("18.5", "inf"), "has a landmark that is not finite"),
        (LINE.format("in/1.png").replace(" 30 ", " 3 "), "is inverted"),
        (LINE.format("in/77.png"), "there is no image file"),
    ],
)
def test_a_bad_line_of_landmarks_is_named(listed, line, words):
    spec = listed([LINE.format("in/0.png"), line])
    lines, faces = [], 0
    for split in split_names(spec):
        dataset = load_dataset(spec, split, on_error="skip")
        lines += dataset.skipped
        faces += sum(len(example.boxes) for example in dataset.examples)
    assert any(words in one and "list.txt" in one for one in lines)
    assert faces == 1


def test_what_is_no_list_of_landmarks_is_one_line(listed):
    with pytest.raises(DataError, match="is not a list of faces"):
        split_names(listed(["path,x1,y1,x2,y2,label"]))
    with pytest.raises(DataError, match="no such file"):
        load_dataset("landmarks:no/such.txt")
    with pytest.raises(DataError, match='no split "night"'):
        load_dataset(listed([LINE.format("in/0.png")]), "night")


# dlib


def parts(count=68):
    """Part i at (i, 2 i)."""
    return "".join(f"<part name='{i:02}' x='{i}' y='{2 * i}'/>" for i in range(count))


@pytest.fixture
def dlib(tmp_path, draw_image):
    """A function (what is inside <images>) -> spec of a folder with faces.xml and the image 1.png, 60 x 40."""
    (tmp_path / "1.png").write_bytes(draw_image(40, 60, [], []))

    def write(images):
        (tmp_path / "faces.xml").write_text(f"<dataset><name>x</name><images>{images}</images></dataset>")
        return f"dlib:{tmp_path}"

    return write


def test_dlib(dlib):
    spec = dlib(
        f"""<image file='1.png' width='60' height='40'>
        <box top='5' left='10' width='20' height='30'>{parts()}</box>
        <box top='1' left='2' width='3' height='4' ignore='1'/></image>"""
    )
    assert split_names(spec) == ("faces",)
    dataset = load_dataset(spec, "faces")
    assert (dataset.class_names, dataset.keypoint_names) == (("face",), FACE)
    (example,) = dataset.examples
    np.testing.assert_array_equal(example.boxes, [(10, 5, 30, 35), (2, 1, 5, 5)])
    np.testing.assert_array_equal(example.crowd, [False, True])
    # The middles of 36 .. 41 and of 42 .. 47, then 30, 48 and 54; each is a pixel, whose middle is meant.
    places = [(39, 77.5, 2), (45, 89.5, 2), (30.5, 60.5, 2), (48.5, 96.5, 2), (54.5, 108.5, 2)]
    np.testing.assert_array_equal(example.keypoints, [places, [(0, 0, 0)] * 5])


def test_dlib_without_landmarks_and_with_labels(dlib):
    box = "<box top='5' left='10' width='20' height='30'>{}</box>"
    spec = dlib(f"<image file='1.png'>{box.format('<label>hat</label>')}{box.format(parts(5))}</image>")
    dataset = load_dataset(spec, "faces")
    assert (dataset.class_names, dataset.keypoint_names) == (("face", "hat"), ())
    assert dataset.examples[0].labels.tolist() == [1, 0]
    assert dataset.examples[0].keypoints is None


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (
            "<image file='1.png'><box top='5' left='x' width='2' height='3'/></image>",
            'box 0 "face": has no numbers left',
        ),
        ("<image file='1.png'><box top='5' left='1' width='0' height='3'/></image>", "has zero area"),
        (
            f"<image file='1.png'><box top='5' left='1' width='9' height='3'>{parts().replace('2', 'b', 1)}</box>"
            "</image>",
            "has a part without numbers x and y",
        ),
        ("<image file='2.png'/>", "there is no image file"),
        ("<image/>", "image 0: has no file"),
        ("<image file='1.png'/><image file='1.png'/>", "image 1.png: occurs twice"),
        ("<image file='1.png' width='9' height='9'/>", "the annotations are for 9x9 pixels"),
    ],
)
def test_what_is_bad_in_dlibs_xml_is_named(dlib, images, words):
    spec = dlib(images)
    with pytest.raises(DataError) as error:
        load_dataset(spec, "faces")
    assert words in str(error.value)
    assert "faces.xml" in str(error.value)
    assert len(load_dataset(spec, "faces", on_error="skip").skipped) == 1


def test_what_is_no_xml_of_dlib_is_one_line(dlib, tmp_path):
    spec = dlib("")
    for name, text, words in (
        ("a", "<annotation/>", "is not dlib's <dataset> but <annotation>"),
        ("b", "<dataset>", "cannot be read as XML"),
        ("c", '<!DOCTYPE x [<!ENTITY y "z">]><dataset>&y;</dataset>', "has forbidden XML"),
    ):
        (tmp_path / f"{name}.xml").write_text(text)
        with pytest.raises(DataError) as error:
            load_dataset(spec, name)
        assert words in str(error.value)
    with pytest.raises(DataError, match='no split "train"; there are a, b, c, faces'):
        load_dataset(spec, "train")
    with pytest.raises(DataError, match="no such folder"):
        load_dataset("dlib:no/such/folder")


# Real data


def test_real_faces(shared_data):
    faces = [
        load_dataset(f"dlib:{shared_data}/dlib_faces", f"{split}_with_face_landmarks")
        for split in ("training", "testing")
    ]
    keypoints = np.concatenate([example.keypoints for dataset in faces for example in dataset.examples])
    assert keypoints.shape == (43, 5, 3)
    # The viewer's left is left, and the mouth is below the eyes.
    assert (keypoints[:, 0, 0] < keypoints[:, 1, 0]).all()
    assert (keypoints[:, 3, 0] < keypoints[:, 4, 0]).all()
    assert (keypoints[:, 3:, 1].min(axis=1) > keypoints[:, :2, 1].max(axis=1)).all()

    wider = load_dataset(f"wider_face:{shared_data}/wider200", "scaled416", on_error="skip")
    assert (len(wider), sum(len(example.boxes) for example in wider.examples)) == (200, 4370)
    assert sum(int(example.crowd.sum()) for example in wider.examples) == 39
    assert ["has zero area" in line for line in wider.skipped] == [True, True]


def test_real_landmarks(shared_data, tmp_path):
    """The list is of photographs of 250 x 250 pixels, which are there in 80 x 80."""
    (tmp_path / "lfw_5590").symlink_to(shared_data / "lfw5" / "lfw_5590")
    lines = (shared_data / "lfw5" / "trainImageList.txt").read_text().splitlines()[:200]
    rows = [line.split() for line in lines]
    scaled = [" ".join([path, *(str(float(value) * 0.32) for value in values)]) for path, *values in rows]
    (tmp_path / "list.txt").write_text("\n".join(scaled))
    dataset = load_dataset(f"landmarks:{tmp_path / 'list.txt'}", "train")
    assert 140 < len(dataset) < 180
    for example in dataset.examples:
        (x1, y1, x2, y2), places = example.boxes[0], example.keypoints[0, :, :2]
        assert ((places > (x1 - 3, y1 - 3)) & (places < (x2 + 3, y2 + 3))).all()
