import math

import numpy as np
import pytest

import tfdet
from tfdet.backbones.stand_in import StandIn, stand_in
from tfdet.data.pipeline import fed_blank
from tfdet.errors import TfdetError
from tfdet.inspection import choice
from tfdet.inspection.choice import Choice


def test_rows_stand_below_the_detector_that_they_vary():
    rows = choice.choices(
        ["fcos", "ssd300", "fcos"],
        ["ssd300.iou=0.4", "fcos.radius=0", "ssd300.priors=coco, iou = 1", "fcos.ranges=[8, 16,32,64],long_side=640"],
    )
    ranges = ((0, 8), (8, 16), (16, 32), (32, 64), (64, math.inf))
    assert rows == [
        Choice("fcos", {}),
        Choice("fcos", {"radius": None}, "radius=0"),
        Choice("fcos", {"ranges": ranges, "long_side": 640}, "ranges=[8, 16,32,64],long_side=640"),
        Choice("ssd300", {}),
        Choice("ssd300", {"iou": 0.4}, "iou=0.4"),
        Choice("ssd300", {"priors": "coco", "iou": 1.0}, "priors=coco, iou = 1"),
    ]


@pytest.mark.parametrize(
    ("names", "change", "said"),
    [
        (["yolo"], [], "no detector yolo to inspect; there are ssd300, faster_rcnn_fpn, retinanet, fcos, "),
        (["ssd300"], ["yolo.iou=0.4"], "--set yolo.iou=0.4: give DETECTOR.SETTING=VALUE, with one of ssd300, "),
        (["ssd300"], ["ssd300.iou"], "--set ssd300.iou: give DETECTOR.SETTING=VALUE, with one of ssd300, "),
        (["ssd300"], ["iou=0.4"], "--set iou=0.4: give DETECTOR.SETTING=VALUE, with one of ssd300, "),
        (
            ["ssd300"],
            ["ssd300.min_pos_iou=0.4"],
            "--set ssd300.min_pos_iou=0.4: ssd300 has no setting min_pos_iou; there are priors, prior_sizes, iou",
        ),
        (["ssd300"], ["ssd300.iou=1.4"], "--set ssd300.iou=1.4: iou must be between 0 and 1"),
        (["ssd300"], ["ssd300.iou=large"], "--set ssd300.iou=large: iou is not of its kind"),
        (["ssd300"], ["ssd300.iou=[1]"], "--set ssd300.iou=[1]: iou is not of its kind"),
        (["ssd300"], ["ssd300.iou=nan"], "--set ssd300.iou=nan: iou must be between 0 and 1"),
        (["fcos"], ["fcos.radius=-1"], "--set fcos.radius=-1: radius must be at least 0, which is none"),
        (["fcos"], ["fcos.ranges=[8, 4, 2, 1]"], "--set fcos.ranges=[8, 4, 2, 1]: ranges must be four numbers"),
        (["fcos"], ["fcos.ranges=[8, 16]"], "--set fcos.ranges=[8, 16]: ranges must be four numbers"),
        (["fcos"], ["fcos.ranges=8"], "--set fcos.ranges=8: ranges is not of its kind"),
        (["fcos"], ["ssd300.iou=0.4"], "--set ssd300.iou=0.4: ssd300 is left out"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(names, change, said):
    with pytest.raises(TfdetError) as error:
        choice.choices(names, change)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Choice("ssd300", {"priors": "large"}, "priors=large"), "--set ssd300.priors=large: "),
        (Choice("ssd300", {"prior_sizes": [8, 16]}, "prior_sizes=[8, 16]"), "sizes of priors must be seven that rise"),
        (Choice("retinanet", {"anchor_sizes": [8, 16]}, ""), "2 sizes of anchors (8.0, 16.0) for 5 levels"),
        (Choice("faster_rcnn_fpn", {"anchor_sizes": [8] * 6}, ""), "6 sizes of anchors"),
        (Choice("fcos", {"long_side": "wide"}, "long_side=wide"), "--set fcos.long_side=wide: "),
        (Choice("fcos", {"long_side": 0}, ""), "--long-side must be at least 1"),
        (Choice("centernet", {"side": 100}, ""), "side 100: this backbone needs a multiple of 32"),
    ],
)
def test_values_that_a_recipe_does_not_take(drawn, capsys, row, said):
    try:
        choice.build(row, "shapes", drawn)
    except TfdetError as error:
        assert str(error).startswith(said)
    except SystemExit as stop:
        assert stop.code == 2
        err = capsys.readouterr().err
        assert err.startswith(f"tfdet: error: {said}") and err.count("\n") == 1
    else:
        pytest.fail("it was taken")


def same(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        first, second = first.values(), second.values()
    elif not isinstance(first, (tuple, list)):
        return np.testing.assert_array_equal(first, second)
    for one, other in zip(first, second, strict=True):
        same(one, other)


@pytest.mark.parametrize(
    ("name", "changes", "build"),
    [
        ("ssd300", {}, lambda names: tfdet.ssd300(names, "vgg_slim")),
        ("ssd300", {"prior_sizes": [9, 20, 40, 80, 120, 160, 240.5]}, None),
        ("faster_rcnn_fpn", {}, lambda names: tfdet.faster_rcnn_fpn(names, "resnet_slim", None, (192, 256), 400)),
        (
            "faster_rcnn_fpn",
            {"backbone": "mobilenet_v2"},
            lambda names: tfdet.faster_rcnn_fpn(names, "mobilenet_v2", None, (192, 256), 400),
        ),
        ("retinanet", {}, lambda names: tfdet.retinanet(names, "resnet_slim", None, (192, 256), 400)),
        ("fcos", {}, lambda names: tfdet.fcos(names, "resnet_slim", None, (192, 256), 400, improved=True)),
        ("centernet", {}, lambda names: tfdet.centernet(names, "resnet_slim_up", side=256)),
        ("cornernet", {}, lambda names: tfdet.cornernet(names, "hourglass_slim", side=256)),
        ("extremenet", {}, lambda names: tfdet.extremenet(names, "hourglass_slim", side=256)),
    ],
)
def test_targets_are_those_of_the_recipes_detector(drawn, name, changes, build):
    """The whole one, which a recipe builds on the shapes."""
    detector = choice.build(Choice(name, changes), "shapes", drawn)
    assert detector.weights == [] or name in ("ssd300", "cornernet", "extremenet")
    if build is None:
        whole = tfdet.ssd300(drawn.class_names, "vgg_slim", priors=changes["prior_sizes"])
    else:
        whole = build(drawn.class_names)
    for number, example in enumerate(drawn.examples):
        fed, expected = (fed_blank(example, number, one) for one in (detector, whole))
        same(fed, expected)
        same(detector.encode(*fed), whole.encode(*expected))


def test_rules_are_the_encoders(drawn):
    """What is changed is what the encoder goes by: a lower threshold has more positives."""
    strict, lenient = (choice.build(Choice("ssd300", {"iou": iou}), "shapes", drawn) for iou in (0.7, 0.3))
    positives = [
        int(np.sum(np.asarray(one.encode(*fed_blank(drawn.examples[2], 2, one))["labels"]) >= 0))
        for one in (strict, lenient)
    ]
    assert 3 <= positives[0] < positives[1]


@pytest.mark.parametrize(
    ("rule", "value", "more", "less"), [("pos_iou", 0.4, 0, -2), ("neg_iou", 0.2, -2, -1), ("min_pos_iou", 0.6, -2, 0)]
)
@pytest.mark.parametrize("name", ["faster_rcnn_fpn", "retinanet"])
def test_rules_of_anchors(make_dataset, name, rule, value, more, less):
    """An object of 20 x 100 pixels, whose best anchors, twice as high as wide, have an IoU of 0.4 to 0.5."""
    dataset = make_dataset((128, 128, [(50, 10, 70, 110)], [0]))
    base = {"short_sides": [128], "long_side": 128}
    numbers = []
    for changes in ({}, {rule: value}):
        detector = choice.build(Choice(name, base | changes), "shapes", dataset)
        (samples,) = detector.samples(*fed_blank(dataset.examples[0], 0, detector))
        numbers.append({kind: int((np.asarray(samples.matched) == kind).sum()) for kind in (0, -1, -2)})
    before, after = numbers
    assert after[more] > before[more] and after[less] < before[less] and before[0] > 0


def test_ranges_and_radius_of_fcos(drawn):
    fed, found = None, []
    for changes in ({}, {"radius": None}, {"ranges": choice.ranges([8, 16, 32, 64])}):
        detector = choice.build(Choice("fcos", changes), "shapes", drawn)
        fed = fed or fed_blank(drawn.examples[2], 2, detector)
        found.append(np.asarray(detector.samples(*fed)[0].matched))
    assert (found[0] >= 0).sum() < (found[1] >= 0).sum()  # the recipe's is the improved one
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "name", ["vgg16", "vgg_slim", "mobilenet_v2", "resnet18", "resnet_slim", "resnet_slim_up", "hourglass_slim"]
)
def test_a_stand_in_has_maps_of_the_same_sizes(name):
    side = 384 if "up" in name or "hourglass" in name else 300
    real, stand = tfdet.backbones.build(name), stand_in(name)
    assert isinstance(stand, StandIn) and stand.weights == [] and stand.name == name
    shapes = [model.compute_output_shape((1, side, 224, 3)) for model in (stand, real)]
    maps, expected = ({level: shape[1:3] for level, shape in one.items() if level != "stack2"} for one in shapes)
    assert maps == expected


def test_sides_of_the_published_network():
    """Images for Hourglass-104 are padded to a multiple of 128 pixels."""
    detector = tfdet.cornernet(2, stand_in("hourglass104"), keep_size=True)
    assert detector.resizer(np.zeros((300, 100, 3), "uint8")).shape == (383, 127, 3)
