import dataclasses

import numpy as np
import pytest

from tfdet.inspection import choice, panels
from tfdet.inspection.choice import Choice


def picture(dataset, number, name, changes=None):
    row = Choice(name, changes or {}, "changed" if changes else "")
    return panels.picture(dataset, number, [(row, choice.build(row, "shapes", dataset))])


def of_kind(panel, kind):
    return [sample for sample in panel["samples"] if sample["kind"] == kind]


def test_an_image_and_its_objects(drawn):
    found = picture(drawn, 0, "fcos")
    assert (found["image"], found["width"], found["height"], found["pixels"].shape) == (
        "image 0",
        90,
        150,
        (150, 90, 3),
    )
    assert found["pixels"].dtype == np.uint8
    assert found["objects"] == [
        {"box": [10, 20, 60, 70], "label": "red", "crowd": False},
        {"box": [12, 22, 58, 72], "label": "red", "crowd": False},
        {"box": [3, 100, 9, 130], "label": "blue", "crowd": True},
    ]


def test_boxes_are_in_pixels_of_the_image(drawn):
    """SSD warps it to 300 x 300: its first priors, squares of 30 around (4, 4), are 9 x 15 pixels there."""
    (panel,) = picture(drawn, 0, "ssd300")["panels"]
    assert (panel["detector"], panel["stage"], panel["settings"]) == ("ssd300", "priors", "")
    positives = of_kind(panel, "positive")
    counts = panel["counts"]
    assert counts["positive"] == counts["positives drawn"] == len(positives) > 0
    assert counts["negative"] == 8732 - len(positives) and counts["negatives drawn"] == 3 * len(positives)
    assert of_kind(panel, "negative") == []  # which ones are hard depends on the network
    for sample in positives:
        assert sample["shape"] == "box" and sample["object"] in (0, 1)
        x1, y1, x2, y2 = sample["box"]
        a1, b1, a2, b2 = drawn.examples[0].boxes[sample["object"]]
        shared = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
        iou = shared / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared)
        assert sample["text"] == f"IoU {iou:.2f}"
    assert positives[0]["object"] != positives[1]["object"]  # the best of each come first


def test_ignored_and_negative_ones_are_a_few_of_those_on_the_image(drawn):
    changes = {"backbone": "resnet_slim", "short_sides": [150], "long_side": 400}
    (panel,) = picture(drawn, 2, "faster_rcnn_fpn", changes)["panels"]
    assert panel["settings"] == "changed"
    assert len(of_kind(panel, "ignored")) == len(of_kind(panel, "negative")) == 60
    assert panel["counts"]["positives drawn"] + panel["counts"]["negatives drawn"] == 256
    for sample in of_kind(panel, "ignored") + of_kind(panel, "negative"):
        x1, y1, x2, y2 = sample["box"]
        assert 0 <= (x1 + x2) / 2 <= 128 and 0 <= (y1 + y2) / 2 <= 128 and sample["object"] is None
    assert set(panel["lost"]) == {"1"}  # of 6 pixels
    assert panel["lost"]["1"] == "too small for every anchor"
    assert not any(sample["object"] == 1 for sample in panel["samples"])


@pytest.mark.parametrize(
    ("name", "changes", "kinds"),
    [
        ("centernet", {"side": 128}, ["centre"]),
        ("cornernet", {"backbone": "resnet_slim_up", "side": 127}, ["top_left", "bottom_right"]),
        (
            "extremenet",
            {"backbone": "resnet_slim_up", "side": 127},
            ["top", "left", "bottom", "right", "centre"],
        ),
    ],
)
def test_points_lie_in_their_cells_and_heatmaps_peak_there(drawn, name, changes, kinds):
    """In an image of which the 90 x 150 pixels are shown as 76 x 128, or 76 x 127."""
    (panel,) = picture(drawn, 0, name, changes)["panels"]
    positives = of_kind(panel, "positive")
    x1, y1, x2, y2 = drawn.examples[0].boxes[0]
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    points = {"centre": (x, y), "top_left": (x1, y1), "bottom_right": (x2, y2)}
    points |= {"top": (x, y1), "left": (x1, y), "bottom": (x, y2), "right": (x2, y)}
    own = {sample["text"]: sample["box"] for sample in positives if sample["object"] == 0}
    assert set(own) == set(kinds)
    cell = 4 * 150 / 128
    for kind, (a, b, c, d) in own.items():
        assert c - a == pytest.approx(cell, rel=0.02) and d - b == pytest.approx(cell, rel=0.02)
        if kind != "centre" or name != "extremenet":  # whose centre is half way between cells
            assert a - 0.1 <= points[kind][0] <= c + 0.1 and b - 0.1 <= points[kind][1] <= d + 0.1
    assert [heatmap["title"] for heatmap in panel["heatmaps"]] == [
        "red" if len(kinds) == 1 else f"red, {kind}" for kind in kinds
    ]
    for kind, heatmap in zip(kinds, panel["heatmaps"], strict=True):
        values, (_, _, width, height) = heatmap["values"], heatmap["box"]
        rows, columns = values.shape
        assert values.max() == 1 and width / columns == pytest.approx(cell, rel=0.02)
        a, b, c, d = own[kind]
        row, column = int((b + d) / 2 / height * rows), int((a + c) / 2 / width * columns)
        assert values[row, column] == 1


def test_an_object_is_called_by_its_number_in_the_image(make_dataset):
    """Detectors of points are not given crowds."""
    dataset = make_dataset((128, 128, [(0, 0, 30, 30), (40, 40, 90, 100), (40, 40, 90, 100)], [0, 1, 1]))
    crowd = dataclasses.replace(dataset.examples[0], crowd=np.array([True, False, False]))
    dataset = dataclasses.replace(dataset, examples=(crowd,))
    (panel,) = picture(dataset, 0, "centernet", {"side": 128})["panels"]
    assert [sample["object"] for sample in panel["samples"]] == [1]
    assert panel["lost"] == {"2": "its cell (centre) is taken by another of its class"}


def test_an_image_without_objects(drawn):
    for name in ("ssd300", "retinanet", "fcos", "centernet"):
        found = picture(drawn, 3, name)
        assert found["objects"] == [] and of_kind(found["panels"][0], "positive") == []
        assert found["panels"][0]["lost"] == {} and found["panels"][0]["heatmaps"] == []
