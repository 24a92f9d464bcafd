import dataclasses
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import tfdet
from tfdet import samplers
from tfdet.data.pipeline import fed_blank
from tfdet.inspection import choice, statistics

# Each trains from nothing on a CPU, with inputs of which a test takes little time.
SMALL = {
    "ssd300": {},
    "faster_rcnn_fpn": {"backbone": "resnet_slim", "short_sides": [96, 128, 160], "long_side": 256},
    "retinanet": {"backbone": "resnet_slim", "short_sides": [96, 128, 160], "long_side": 256},
    "fcos": {"backbone": "resnet_slim", "short_sides": [96, 128, 160], "long_side": 256},
    "centernet": {"backbone": "resnet_slim_up", "side": 128},
    "cornernet": {"backbone": "resnet_slim_up", "side": 127},
    "extremenet": {"backbone": "resnet_slim_up", "side": 127},
}


@pytest.fixture(scope="module", params=SMALL)
def detector(request, drawn):
    return choice.build(choice.Choice(request.param, SMALL[request.param]), "shapes", drawn)


def labels_in(targets):
    """Of a batch's targets with labels, all of them, int [N]."""
    name = "rpn_labels" if "rpn_labels" in targets else "labels"
    maps = targets[name] if isinstance(targets[name], (tuple, list)) else [targets[name]]
    return np.concatenate([np.ravel(one) for one in maps])


def counted(detector, batches):
    """What of COUNTS batches have, in all, that enters the loss."""
    found = Counter()
    for _, targets in batches:
        heatmaps = [np.asarray(value) for name, value in targets.items() if "heatmap" in name]
        if heatmaps:
            values = np.concatenate([np.ravel(heatmap) for heatmap in heatmaps])
            found["positives_drawn"] += int((values == 1).sum())
            found["negatives_drawn"] += int((values < 1).sum())
            found["softened"] += int(((values > 0) & (values < 1)).sum())
        elif detector.name == "ssd300":
            labels = np.asarray(targets["labels"])
            cost = np.random.default_rng(0).random(labels.shape)
            found["positives_drawn"] += int((labels >= 0).sum())
            found["negatives_drawn"] += int(np.sum(samplers.hard_negatives(cost, labels >= 0)))
        else:
            labels = labels_in(targets)
            found["positives_drawn"] += int((labels >= 0).sum())
            found["negatives_drawn"] += int((labels == -1).sum())
    return found


@pytest.fixture(scope="module")
def tally(detector, drawn):
    (tally,) = statistics.measure(detector, drawn, keep=10).values()
    return tally


def test_counts_are_those_of_an_epoch_of_training(detector, drawn, tally):
    found = counted(detector, tfdet.training_batches(drawn, detector, 2, seed=statistics.SEED, start_step=0).take(2))
    assert found["positives_drawn"] > 0
    own = dict(zip(statistics.COUNTS, tally.counts.tolist(), strict=True))
    assert tally.images == 4
    assert {name: own[name] for name in found} == found
    assert own["softened"] == found["softened"]


def test_objects_are_those_of_validation_batches(detector, drawn, tally):
    """No image here has so many positives that not all would be drawn."""
    found = counted(detector, tfdet.validation_batches(drawn, detector, 1))
    positives = sum(tally.positives, Counter())
    assert sum(number * objects for number, objects in positives.items()) == found["positives_drawn"] > 0
    sizes = tally.sizes()
    # The crowd is none of them; one has 6 x 6 pixels, one 96 x 116.
    assert [sizes[size]["objects"] for size in ("all", "small", "medium", "large")] == [7, 1, 5, 1]
    assert statistics.objects(drawn) == {size: sizes[size]["objects"] for size in sizes}


def test_samples_are_the_encoders_one_by_one(detector, drawn):
    """Which they are, not only how many: also those that are drawn by lot, which follow from the seed."""
    for number, example in enumerate(drawn.examples):
        fed = fed_blank(example, number, detector)
        (samples,), targets = detector.samples(*fed), detector.encode(*fed)
        matched, lost = np.asarray(samples.matched), np.flatnonzero(np.asarray(samples.why))
        if samples.heatmaps:
            for i, (kind, heatmap) in enumerate(samples.heatmaps.items()):
                expected = targets["heatmap" if detector.name == "centernet" else f"{kind}_heatmap"]
                np.testing.assert_array_equal(heatmap, expected)
                assert int((np.asarray(samples.kind) == i).sum()) == int((np.asarray(expected) == 1).sum())
        else:
            served = np.where(matched >= 0, np.append(fed[2], 0)[np.maximum(matched, 0)], matched)
            if detector.name == "faster_rcnn_fpn":
                served = np.where(samples.drawn, np.minimum(matched, 0), -2)
            np.testing.assert_array_equal(served, labels_in(targets))
            expected = np.flatnonzero((np.bincount(matched[matched >= 0], minlength=len(fed[1])) == 0) & (fed[2] >= 0))
            np.testing.assert_array_equal(lost, expected)


def test_what_follows_from_the_rules(detector, tally):
    """What every algorithm promises of its samples, whatever the data."""
    figures = tally.figures()
    whole = figures["positives"] + figures["negatives"] + figures["ignored"]
    assert figures["positives_drawn"] <= figures["positives"] and figures["negatives_drawn"] <= figures["negatives"]
    if detector.name == "ssd300":
        assert whole == 8732 and figures["ratio"] == 3 and figures["ignored"] == 0 and figures["lost"] == 0
    elif detector.name == "faster_rcnn_fpn":
        assert figures["positives_drawn"] + figures["negatives_drawn"] == 256
    elif tally.stage.heatmaps:
        assert figures["ignored"] == 0 and whole == 32 * 32 * 2 * len(tally.stage.heatmaps)
    else:
        assert figures["negatives_drawn"] == figures["negatives"]
    assert (figures["best_iou"] is None) == (tally.stage.shape == "point") == (figures["recall"] is None)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [({}, None), ({4: 1}, 4), ({1: 1, 2: 1}, 1.5), ({0: 3, 7: 2}, 0), ({0: 2, 7: 3}, 7), ({0: 5, 3: 5}, 1.5)],
)
def test_median(numbers, expected):
    numbers = Counter(numbers)
    assert statistics.median(numbers) == expected
    if numbers:
        assert np.median(list(numbers.elements())) == expected


def test_a_tally_by_hand(drawn):
    stage = SimpleNamespace(reasons=("small", "taken"), collisions=("taken",), shape="box", heatmaps={})
    tally = statistics.Tally(stage, keep=2)
    first, second, third, _ = drawn.examples  # areas 2500, 2300 and a crowd; 1600, 1125; 11136, 36, 4200
    found = {"positives": [3, 0, 0], "drawn": [0, 0, 0], "best": [0.5, 0, 0], "why": [0, 2, 0]}
    tally.add_objects(first, np.arange(3), {name: np.array(value) for name, value in found.items()})
    found = {"positives": [5, 1], "drawn": [5, 1], "best": [0.75, 0.25], "why": [0, 0]}
    tally.add_objects(second, np.arange(2), {name: np.array(value) for name, value in found.items()})
    found = {"positives": [9, 0, 0], "drawn": [2, 0, 0], "best": [0.9, 0, 0], "why": [0, 1, 1]}
    tally.add_objects(third, np.arange(3), {name: np.array(value) for name, value in found.items()})
    tally.add_image(np.array([10, 20, 30, 0, 4, 6]))
    tally.add_image(np.array([20, 20, 30, 0, 6, 14]))

    figures = tally.figures()
    assert figures["per_object"] == "1 (0-9)"
    assert [figures[f"per_object_{size}"] for size in ("small", "medium", "large")] == ["0 (0-0)", "1 (0-5)", "9 (9-9)"]
    assert (figures["lost"], figures["collisions"], figures["undrawn"]) == (3, 1, 1)
    assert figures["why"] == "2 small; 1 taken"
    assert figures["best_iou"] == pytest.approx(2.4 / 7) and figures["recall"] == pytest.approx(3 / 7)
    assert (figures["positives"], figures["negatives_drawn"], figures["ratio"]) == (15, 10, 2)
    sizes = tally.sizes()
    assert sizes["medium"] == {
        "objects": 5,
        "median": 1,
        "least": 0,
        "most": 5,
        "none": 2,
        "lost": 2,
        "best_iou": pytest.approx(1.5 / 5),
        "recall": 2 / 5,
    }
    assert [(example.image_id, number, reason) for example, number, reason in tally.lost] == [
        ("image 0", 1, "taken"),
        ("image 2", 1, "small"),
    ]


def test_nothing_is_decoded(drawn):
    gone = tuple(dataclasses.replace(example, image="nowhere.jpg") for example in drawn.examples)
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", drawn)
    (tally,) = statistics.measure(detector, dataclasses.replace(drawn, examples=gone), keep=10).values()
    assert tally.images == 4


def test_of_no_objects_there_is_nothing_to_say(make_dataset):
    dataset = make_dataset((100, 120, [], []))
    assert statistics.objects(dataset) == {"all": 0, "small": 0, "medium": 0, "large": 0}
    detector = choice.build(choice.Choice("ssd300", {}), "shapes", dataset)
    (tally,) = statistics.measure(detector, dataset, keep=10).values()
    figures = tally.figures()
    assert (figures["positives"], figures["negatives"], figures["negatives_drawn"]) == (0, 8732, 0)
    nothing = ("ratio", "per_object", "per_object_small", "best_iou", "recall")
    assert {figures[name] for name in nothing} == {None} and figures["lost"] == 0
