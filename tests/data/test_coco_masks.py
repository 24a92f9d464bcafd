import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tfdet.data import load_dataset, split_names
from tfdet.errors import DataError
from tfdet.skeleton import EXTREME_POINTS

DIAMOND = [[20, 5, 40, 20, 25, 40, 5, 15]]
POINTS = [[20, 5, 2], [5, 15, 2], [25, 40, 2], [40, 20, 2]]


def pixels(x1, y1, x2, y2):
    """A box of an image of 64x48 pixels as run lengths."""
    mask = np.zeros((48, 64), np.uint8)
    mask[y1:y2, x1:x2] = 1
    runs = np.diff(np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0)), prepend=0, append=0)[:-1]
    return [*runs.tolist(), 48 * 64 - int(runs.sum())]


def rle(counts, size=(48, 64)):
    return {"size": list(size), "counts": counts}


def compressed(runs):
    return rle(coco_mask.frPyObjects(rle(runs), 48, 64)["counts"].decode())


def write(folder, segmentation=DIAMOND, **crowd):
    """Two images of 64 x 48 pixels; the first annotation of the first has the segmentation, if there is any."""
    own = {} if segmentation is None else {"segmentation": segmentation}
    common = {"image_id": 1, "category_id": 1}
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in (1, 2)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": 1, "bbox": [5, 5, 35, 35], **common, **own},
            {"id": 2, "bbox": [0, 0, 9, 9], "segmentation": rle(pixels(0, 0, 9, 9)), "iscrowd": 1, **common},
            {"id": 3, "bbox": [9, 9, 0, 0], "segmentation": DIAMOND, **common},
            {"id": 4, "bbox": [2, 2, 8, 8], "segmentation": compressed(pixels(2, 3, 10, 10)), **common},
        ],
    }
    for path in (folder / "annotations", folder / "val2017"):
        path.mkdir(exist_ok=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("1.png", "2.png"):
        Image.new("RGB", (64, 48)).save(folder / "val2017" / name)
    return f"coco_masks:{folder}"


def test_reads_what_the_file_says(tmp_path):
    """The box of no area is left out, with its mask."""
    spec = write(tmp_path)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert len(dataset.skipped) == 1 and "annotation 3): has zero area" in dataset.skipped[0]
    assert dataset.name == f"coco_masks:{tmp_path.name} val" and split_names(spec) == ("val",)
    assert dataset.keypoint_names == EXTREME_POINTS == ("top", "left", "bottom", "right")
    some, none = dataset.examples
    assert some.boxes.tolist() == [[5, 5, 40, 40], [0, 0, 9, 9], [2, 2, 10, 10]]
    assert (some.keypoints.dtype, some.keypoints.shape) == (np.float32, (3, 4, 3))
    assert some.keypoints[0].tolist() == POINTS
    assert not some.keypoints[1].any()  # of a crowd nothing is learned
    assert some.keypoints[2].tolist() == [[6, 3, 2], [2, 6.5, 2], [6, 10, 2], [10, 6.5, 2]]
    diamond, crowd, square = (coco_mask.decode(one) for one in some.masks)
    assert diamond.shape == (48, 64)
    assert (diamond[20, 20], diamond[6, 20], diamond[6, 6], diamond[30, 38]) == (1, 1, 0, 0)
    assert crowd[:9, :9].all() and crowd.sum() == 81
    assert square[3:10, 2:10].all() and square.sum() == 56
    assert none.masks == () and none.keypoints.shape == (0, 4, 3)


def test_other_data_sets_have_no_masks(tmp_path):
    example = load_dataset(write(tmp_path).replace("coco_masks", "coco"), "val", on_error="skip").examples[0]
    assert example.masks is None and example.keypoints is None


def test_an_rle_means_what_it_means_to_pycocotools(tmp_path):
    """Compressed or not, of whatever lengths: numbers of several characters, and negative differences."""
    rng = np.random.default_rng(0)
    for i in range(10):
        mask = np.asfortranarray(rng.random((48, 64)) < (0.5 if i % 2 else 0.002), np.uint8)
        mask[40:47, 60:] = i % 3 > 0
        encoded = coco_mask.encode(mask)
        (example, _) = load_dataset(write(tmp_path, rle(encoded["counts"].decode())), "val", "skip").examples
        assert example.masks[0] == encoded
        rows, columns = np.nonzero(mask)
        edges = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
        assert example.keypoints[0][range(4), [1, 0, 1, 0]].tolist() == edges


FULL = pixels(0, 0, 20, 48)
FAULTS = {
    "none": (None, 'has no "segmentation"'),
    "a text": ("text", 'segmentation: "text" is neither a list of polygons nor an RLE'),
    "no polygon": ([], "segmentation: [] is neither"),
    "one polygon, not a list of them": (DIAMOND[0], "polygon 0, 20, is not a list of numbers"),
    "a polygon of texts": ([["1"] * 6], "is not a list of numbers"),
    "a number beyond all": ([[10**400, *DIAMOND[0][1:]]], "is not a list of numbers"),
    "two points": ([*DIAMOND, [1, 2, 3, 4]], "polygon 1 has 4 numbers, not x and y of at least 3 points"),
    "no point": ([[]], "polygon 0 has 0 numbers"),
    "half a point": ([[*DIAMOND[0], 3]], "polygon 0 has 9 numbers"),
    "not a number": ([[float("nan"), *DIAMOND[0][1:]]], "polygon 0 has a coordinate that is not finite"),
    "infinite": ([[*DIAMOND[0][:7], float("-inf")]], "polygon 0 has a coordinate that is not finite"),
    "far outside": ([[1e9, *DIAMOND[0][1:]]], "polygon 0 leaves the image of 64x48 pixels"),
    "just outside": ([[*DIAMOND[0][:5], 49.5, 5, 15]], "polygon 0 leaves the image"),
    "no size": ({"counts": FULL}, "the RLE's size is null, not [height, width] = [48, 64]"),
    "another size": (rle(FULL, (64, 48)), "the RLE's size is [64, 48], not"),
    "no counts": ({"size": [48, 64]}, "the RLE's counts, null, are no run lengths"),
    "half a pixel": (rle([0.5, 3071.5]), "are no run lengths"),
    "less than nothing": (rle([-1, 10, 3063]), "are no run lengths"),
    "too short": (rle(FULL[:-1]), "the RLE has 960 pixels, not 64x48"),
    "too long": (rle([*FULL, 1]), "the RLE has 3073 pixels"),
    "nothing in it": (rle([3072]), "the RLE has no pixel of the object"),
    "compressed, but cut off": (rle("P" * 5), 'counts, "PPPPP", are no run lengths'),
    "compressed, but too short": (compressed(FULL) | {"counts": compressed(FULL)["counts"][:-3]}, "pixels, not 64x48"),
    "another character": (rle("0\n0"), "are no run lengths"),
    "no character of ASCII": (rle("é"), "are no run lengths"),
    "endless": (rle("o" * 100_000), "are no run lengths"),
    "negative, compressed": (rle("N"), "are no run lengths"),
}


@pytest.mark.parametrize(("segmentation", "fault"), FAULTS.values(), ids=FAULTS)
def test_a_bad_mask_is_named_and_only_the_mask_is_lost(tmp_path, segmentation, fault):
    spec = write(tmp_path, segmentation)
    with pytest.raises(DataError, match=r'image 1: box 0 \(5, 5, 40, 40\) "person" \(annotation 1\): ') as error:
        load_dataset(spec, "val")
    assert fault in str(error.value) and "\n" not in str(error.value)
    dataset = load_dataset(spec, "val", on_error="skip")
    assert len(dataset.skipped) == 2 and fault in dataset.skipped[0]
    example = dataset.examples[0]
    assert len(example.boxes) == 3 == len(example.masks) and example.masks[0] is None and example.masks[2]
    assert not example.keypoints[0].any() and example.keypoints[2].all()


def test_half_a_pixel_outside_is_at_the_border(tmp_path):
    outline = [[20, -0.5, 64.5, 20, 25, 48.5, -0.5, 15]]
    example = load_dataset(write(tmp_path, outline), "val", on_error="skip").examples[0]
    assert example.keypoints[0, :, :2].tolist() == [[20, 0], [0, 15], [25, 48], [64, 20]]


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_coco(shared_data, split):
    dataset = load_dataset(f"coco_masks:{shared_data / 'tiny_coco'}", split)
    plain = load_dataset(f"coco:{shared_data / 'tiny_coco'}", split)
    coco = COCO(str(shared_data / f"tiny_coco/annotations/instances_{split}2017.json"))
    assert dataset.skipped == () and dataset.class_names == plain.class_names
    for example, other in zip(dataset.examples, plain.examples, strict=True):
        np.testing.assert_array_equal(example.boxes, other.boxes)
        annotations = coco.loadAnns(coco.getAnnIds(example.image_id))
        assert example.masks == tuple(coco.annToRLE(one) for one in annotations)
        assert (example.keypoints[..., 2] == 2 * ~example.crowd[:, None]).all()
        # The annotated boxes are those of the outlines, whose points are rounded down.
        edges = example.keypoints[:, range(4), [1, 0, 1, 0]][:, [1, 0, 3, 2]]
        assert (abs(edges - example.boxes)[~example.crowd] <= 1.02).all()
    total = sum(example.crowd.size - example.crowd.sum() for example in dataset.examples)
    assert total == {"train": 465, "val": 377}[split]
