"""Evaluation against pycocotools run directly, against tables worked by hand, and as a callback inside `fit`."""

import contextlib
import io
import json
import math

import keras
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet import evaluation, inference
from tfdet.data import load_dataset
from tfdet.data.dataset import Dataset, Example
from tfdet.errors import DataError
from tfdet.inference import Detections
from tfdet.skeleton import EXTREME_POINTS


def example(image_id, boxes, labels, difficult=(), crowd=(), areas=None, size=(200, 200)):
    """`difficult` and `crowd` are indices of boxes."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    if areas is None:
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    index = np.arange(len(boxes))
    return Example(
        image_id=image_id,
        image=f"somewhere/{image_id}.jpg",
        height=size[0],
        width=size[1],
        boxes=boxes,
        labels=np.array(labels, np.int32),
        crowd=np.isin(index, crowd),
        difficult=np.isin(index, difficult),
        areas=np.array(areas, np.float32),
    )


def dataset(*examples, names=("cat", "dog"), ids=None):
    return Dataset("test", names, ids or tuple(range(1, len(names) + 1)), examples)


def found(image_id, *boxes_scores_labels):
    boxes, scores, labels = zip(*boxes_scores_labels, strict=True) if boxes_scores_labels else ((), (), ())
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(image_id, boxes, np.array(scores, np.float32), np.array(labels, np.int32))


# ---------------------------------------------------------------------------------------------------------- COCO


@pytest.fixture
def tiny_coco_file(shared_data):
    return shared_data / "tiny_coco" / "annotations" / "instances_val2017.json"


@pytest.fixture
def tiny_coco(tiny_coco_file):
    """The raw JSON as a Dataset, by the few lines that these tests need, so that no reader is trusted."""
    raw = json.loads(tiny_coco_file.read_text())
    ids = tuple(sorted(category["id"] for category in raw["categories"]))
    names = {category["id"]: category["name"] for category in raw["categories"]}
    examples = []
    for image in raw["images"]:
        rows = [a for a in raw["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in rows], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels, areas = [ids.index(a["category_id"]) for a in rows], [a["area"] for a in rows]
        crowd = [i for i, a in enumerate(rows) if a["iscrowd"]]
        size = (image["height"], image["width"])
        examples.append(example(image["id"], boxes, labels, crowd=crowd, areas=areas, size=size))
    return Dataset("tiny_coco val", tuple(names[i] for i in ids), ids, tuple(examples))


def perturbed(data, rng, ids=lambda image_id: image_id):
    """Detections that are partly right: shaken, missing, doubled and mislabelled ground truth."""
    result = []
    for e in data.examples:
        pick = np.flatnonzero(rng.random(len(e.boxes)) < 0.8)
        pick = np.concatenate([pick, pick[rng.random(len(pick)) < 0.3]])
        sizes = np.tile(e.boxes[pick, 2:] - e.boxes[pick, :2], 2)
        boxes = (e.boxes[pick] + rng.normal(0, 0.06, (len(pick), 4)) * sizes).astype(np.float32)
        wrong = rng.random(len(pick)) < 0.1
        labels = np.where(wrong, rng.integers(0, data.num_classes, len(pick)), e.labels[pick]).astype(np.int32)
        scores = rng.integers(1, 40, len(pick)).astype(np.float32) / 40  # many ties, within and across images
        result.append(Detections(ids(e.image_id), boxes, scores, labels))
    return result


def pycocotools_run(annotation_file, results):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotation_file)
        run = COCOeval(truth, truth.loadRes(results), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def test_same_figures_as_pycocotools_on_the_original_file(tiny_coco, tiny_coco_file, tmp_path, capsys):
    data = tiny_coco
    detections = perturbed(data, np.random.default_rng(0))
    rows = []
    for d in detections:
        for (x1, y1, x2, y2), score, label in zip(d.boxes.tolist(), d.scores.tolist(), d.labels.tolist(), strict=True):
            category_id = data.category_ids[label]
            bbox = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": d.image_id, "category_id": category_id, "bbox": bbox, "score": score})
    run = pycocotools_run(str(tiny_coco_file), rows)
    expected = dict(zip(evaluation.COCO_FIGURES, run.stats.tolist(), strict=True))

    # The order in which the detections come must not matter, though scores tie.
    result = evaluation.coco_average_precision(data, detections[::-1])
    assert capsys.readouterr().out == ""
    assert result.figures == pytest.approx(expected, abs=1e-12)
    assert 0.2 < result.figures["AP"] < 0.8
    assert evaluation.coco_figures(data, detections) == result.figures

    for k, category_id in enumerate(run.params.catIds):
        precision = run.eval["precision"][:, :, k, 0, 2]
        name = data.class_names[data.category_ids.index(category_id)]
        if np.all(precision == -1):
            assert math.isnan(result.per_class[name]["AP"]) and math.isnan(result.per_class[name]["AP50"])
        else:
            assert result.per_class[name]["AP"] == pytest.approx(np.mean(precision), abs=1e-12)
            assert result.per_class[name]["AP50"] == pytest.approx(np.mean(precision[0]), abs=1e-12)

    # The annotations as we write them and the results file, through pycocotools' own readers.
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(evaluation.coco_ground_truth(data)))
    evaluation.save_coco_results(results, data, detections)
    run = pycocotools_run(str(truth), str(results))
    assert run.stats.tolist() == pytest.approx(list(expected.values()), abs=1e-3)
    written = json.loads(tiny_coco_file.read_text())["annotations"]
    assert len(evaluation.coco_ground_truth(data)["annotations"]) == len(written)


def test_string_image_ids_give_the_same_figures(tiny_coco):
    data = tiny_coco
    detections = perturbed(data, np.random.default_rng(1))
    expected = evaluation.coco_figures(data, detections)
    renamed = [Example(**{**vars(e), "image_id": f"{e.image_id:012d}"}) for e in data.examples]
    named = Dataset(data.name, data.class_names, data.category_ids, tuple(renamed))
    detections = [d._replace(image_id=f"{d.image_id:012d}") for d in detections]
    assert evaluation.coco_figures(named, detections) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_fast_evaluator_gives_the_same_figures(tiny_coco, monkeypatch, seed):
    pytest.importorskip("hotcoco", reason="the extra fast-eval is not installed")
    data = tiny_coco
    detections = perturbed(data, np.random.default_rng(seed)) if seed else []
    fast = evaluation.coco_average_precision(data, detections)
    monkeypatch.setattr(evaluation.coco, "hotcoco", None)
    slow = evaluation.coco_average_precision(data, detections)
    assert fast.figures == pytest.approx(slow.figures, abs=1e-9, nan_ok=True)
    for name, figures in slow.per_class.items():
        assert fast.per_class[name] == pytest.approx(figures, abs=1e-9, nan_ok=True)


@pytest.fixture
def awkward():
    """Names for image ids, unsorted like the category ids; crowds, difficult objects, areas that are not the boxes'."""
    rng = np.random.default_rng(3)
    examples = []
    for name in rng.permutation([f"image {i}" for i in range(60)]).tolist():
        count = rng.integers(0, 8)
        corners, sizes = rng.uniform(0, 100, (count, 2)), rng.uniform(5, 180, (count, 2))
        boxes, labels = np.concatenate([corners, corners + sizes], axis=1), rng.integers(0, 3, count)
        crowd, difficult = (np.flatnonzero(rng.random(count) < 0.15) for _ in range(2))
        areas = sizes.prod(axis=1) * rng.uniform(0.2, 1, count)
        examples.append(example(name, boxes, labels, difficult, crowd, areas, size=(300, 300)))
    return dataset(*examples, names=("cat", "dog", "cow"), ids=(9, 2, 5))


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_same_figures_as_pycocotools_on_what_we_write(awkward, tmp_path, monkeypatch, evaluator):
    if evaluator == "hotcoco":
        pytest.importorskip("hotcoco", reason="the extra fast-eval is not installed")
    else:
        monkeypatch.setattr(evaluation.coco, "hotcoco", None)
    detections = perturbed(awkward, np.random.default_rng(4))
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(evaluation.coco_ground_truth(awkward)))
    run = pycocotools_run(str(file), evaluation.coco_results(awkward, detections))

    result = evaluation.coco_average_precision(awkward, detections[::-1])
    assert list(result.figures.values()) == pytest.approx(run.stats.tolist(), abs=1e-9)
    assert all(0.2 < value < 0.8 for value in result.figures.values())
    assert run.params.catIds == [2, 5, 9]
    for k, name in enumerate(("dog", "cow", "cat")):
        assert result.per_class[name]["AP"] == pytest.approx(np.mean(run.eval["precision"][:, :, k, 0, 2]), abs=1e-9)


def test_coco_ground_truth_and_results():
    data = dataset(example("a", [[10, 20, 40, 60], [0, 0, 5, 5]], [1, 0], difficult=[1], areas=[700, 20]), ids=(7, 9))
    truth = evaluation.coco_ground_truth(data)
    assert truth["images"] == [{"id": "a", "file_name": "a.jpg", "height": 200, "width": 200}]
    assert truth["categories"] == [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]
    assert truth["annotations"] == [
        {"id": 1, "image_id": "a", "category_id": 9, "bbox": [10, 20, 30, 40], "area": 700, "iscrowd": 0},
        {"id": 2, "image_id": "a", "category_id": 7, "bbox": [0, 0, 5, 5], "area": 20, "iscrowd": 1},
    ]
    results = evaluation.coco_results(data, [found("a", ([1, 2, 4, 8], 0.5, 1))])
    assert results == [{"image_id": "a", "category_id": 9, "bbox": [1, 2, 3, 6], "score": 0.5}]
    json.dumps([truth, results])


CAT = [10, 10, 60, 60]
ONE_CAT = example("a", [CAT], [0])


@pytest.mark.parametrize(
    ("examples", "detections", "ap", "per_class"),
    [
        ([ONE_CAT], [found("a", (CAT, 0.9, 0))], 1.0, {"cat": 1.0, "dog": math.nan}),
        ([ONE_CAT], [], 0.0, {"cat": 0.0, "dog": math.nan}),
        ([ONE_CAT], [found("a")], 0.0, {"cat": 0.0, "dog": math.nan}),
        ([example("a", [], [])], [found("a", (CAT, 0.9, 0))], math.nan, {"cat": math.nan, "dog": math.nan}),
        ([example("a", [], [])], [], math.nan, {"cat": math.nan, "dog": math.nan}),
        ([], [], math.nan, {"cat": math.nan, "dog": math.nan}),
        # A missed difficult dog is no loss, one that is found is no mistake.
        (
            [example("a", [CAT, [80, 80, 150, 150], CAT], [0, 1, 1], difficult=[1])],
            [found("a", (CAT, 0.5, 0), (CAT, 0.5, 1), ([80, 80, 150, 150], 0.9, 1))],
            1.0,
            {"cat": 1.0, "dog": 1.0},
        ),
    ],
)
def test_coco_edge_cases(examples, detections, ap, per_class):
    result = evaluation.coco_average_precision(dataset(*examples), detections)
    assert tuple(result.figures) == evaluation.COCO_FIGURES
    assert result.figures["AP"] == pytest.approx(ap, nan_ok=True)
    assert {name: value["AP"] for name, value in result.per_class.items()} == pytest.approx(per_class, nan_ok=True)


def test_coco_classes_keep_their_names_though_ids_are_not_sorted():
    data = dataset(example("a", [CAT, [80, 80, 150, 150]], [0, 1]), ids=(9, 7))
    result = evaluation.coco_average_precision(data, [found("a", (CAT, 0.9, 0))])
    assert result.per_class["cat"] == pytest.approx({"AP": 1.0, "AP50": 1.0})
    assert result.per_class["dog"] == {"AP": 0.0, "AP50": 0.0}


@pytest.mark.parametrize("function", [evaluation.coco_figures, evaluation.voc_average_precision])
@pytest.mark.parametrize(
    ("examples", "detections", "message"),
    [
        ([ONE_CAT], [found("b")], "test: detections for image 'b'"),
        ([ONE_CAT], [found("a", (CAT, 0.9, 2))], "image 'a': no class has the label 2"),
        ([ONE_CAT], [found("a", (CAT, 0.9, -1))], "image 'a': no class has the label -1"),
        ([ONE_CAT, ONE_CAT], [], "two images have the same id"),
    ],
)
def test_detections_of_another_data_set_are_refused(function, examples, detections, message):
    with pytest.raises(DataError, match=message):
        function(dataset(*examples), detections)


# ----------------------------------------------------------------------------------------------------------- VOC

A, B, C, FAR = [0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110], [150, 150, 160, 160]
HALF_OF_A, LESS_THAN_HALF_OF_A = [0, 0, 10, 5], [0, 0, 10, 4.9]


def cats(*boxes, difficult=(), crowd=(), image_id="a"):
    return example(image_id, boxes, [0] * len(boxes), difficult=difficult, crowd=crowd)


def cats_found(*boxes_scores, image_id="a"):
    return found(image_id, *((box, score, 0) for box, score in boxes_scores))


@pytest.mark.parametrize(
    ("case", "examples", "detections", "eleven_point", "area"),
    [
        ("all found", [cats(A, B)], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        ("none found", [cats(A, B)], [cats_found((FAR, 0.9))], 0, 0),
        ("no detections", [cats(A)], [], 0, 0),
        ("no objects", [cats()], [cats_found((A, 0.9))], math.nan, math.nan),
        ("only difficult objects", [cats(A, difficult=[0])], [cats_found((A, 0.9))], math.nan, math.nan),
        # Recall 1/2 at precision 1: six of the eleven points (0 .. 0.5).
        ("half found", [cats(A, B)], [cats_found((A, 0.9))], 6 / 11, 1 / 2),
        # right, wrong, right: precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
        ("a mistake between", [cats(A, B)], [cats_found((A, 0.9), (FAR, 0.8), (B, 0.7))], (6 + 5 * 2 / 3) / 11, 5 / 6),
        # The second detection of A is wrong: as above.
        ("found twice", [cats(A, B)], [cats_found((A, 0.9), (A, 0.8), (B, 0.7))], (6 + 5 * 2 / 3) / 11, 5 / 6),
        # wrong, right: precision 1/2 everywhere once made monotone.
        ("a mistake first", [cats(A)], [cats_found((FAR, 0.9), (A, 0.8))], 1 / 2, 1 / 2),
        # The best score decides, not the better overlap: 0.9 is right, 0.8 is wrong.
        ("better overlap comes second", [cats(A)], [cats_found((A, 0.8), (HALF_OF_A, 0.9))], 1, 1),
        ("IoU exactly at the threshold", [cats(A)], [cats_found((HALF_OF_A, 0.9))], 1, 1),
        ("IoU below the threshold", [cats(A)], [cats_found((LESS_THAN_HALF_OF_A, 0.9))], 0, 0),
        ("difficult found first", [cats(A, B, difficult=[0])], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        ("difficult found twice", [cats(A, B, difficult=[0])], [cats_found((A, 0.9), (A, 0.8), (B, 0.7))], 1, 1),
        ("difficult missed", [cats(A, B, difficult=[0])], [cats_found((B, 0.8))], 1, 1),
        ("crowd is like difficult", [cats(A, B, crowd=[0])], [cats_found((A, 0.9), (B, 0.8))], 1, 1),
        # Recall 3/10 reaches the points 0, 0.1, 0.2 and 0.3.
        ("three of ten", [cats(A, *[FAR] * 7, B, C)], [cats_found((A, 0.9), (B, 0.8), (C, 0.7))], 4 / 11, 3 / 10),
        # Ties: the order of the data set, then the order given; the detections' own order of images is nothing.
        ("tie, right first", [cats(A)], [cats_found((A, 0.9), (FAR, 0.9))], 1, 1),
        ("tie, wrong first", [cats(A)], [cats_found((FAR, 0.9), (A, 0.9))], 1 / 2, 1 / 2),
        (
            "tie across images",
            [cats(A, image_id="z"), cats(image_id="a")],
            [cats_found((FAR, 0.9), image_id="a"), cats_found((A, 0.9), image_id="z")],
            1,
            1,
        ),
        # Scores are ranked over the whole set: wrong 0.9 in one image comes before right 0.8 in the other.
        (
            "two images",
            [cats(A, image_id="a"), cats(B, image_id="b")],
            [cats_found((A, 0.8), image_id="a"), cats_found((A, 0.9), image_id="b")],
            6 / 11 / 2,
            1 / 4,
        ),
    ],
)
def test_voc_average_precision_by_hand(case, examples, detections, eleven_point, area):
    expected = {"cat": pytest.approx(eleven_point, nan_ok=True), "dog": pytest.approx(math.nan, nan_ok=True)}
    assert evaluation.voc_average_precision(dataset(*examples), detections) == expected
    expected["cat"] = pytest.approx(area, nan_ok=True)
    assert evaluation.voc_average_precision(dataset(*examples), detections, eleven_point=False) == expected


def test_voc_classes_do_not_mix():
    data = dataset(example("a", [A, A, B], [0, 1, 1]))
    detections = [found("a", (A, 0.9, 1), (B, 0.8, 0), (B, 0.7, 1), (A, 0.6, 0))]
    result = evaluation.voc_average_precision(data, detections, eleven_point=False)
    assert result == pytest.approx({"cat": 1 / 2, "dog": 1.0})


def test_voc_iou_threshold():
    data, detections = dataset(cats(A)), [cats_found((LESS_THAN_HALF_OF_A, 0.9))]
    assert evaluation.voc_average_precision(data, detections, iou_threshold=0.4)["cat"] == 1.0
    # Even at 0, what overlaps nothing finds nothing.
    assert evaluation.voc_average_precision(data, [cats_found((FAR, 0.9))], iou_threshold=0)["cat"] == 0.0


def devkit_average_precision(data, detections, label, eleven_point):
    """VOCevaldet.m and VOCap.m written out box by box, to compare with."""
    truth, rows = {}, []
    for e in data.examples:
        ignored = e.crowd | e.difficult
        truth[e.image_id] = [[e.boxes[i].astype(float), ignored[i], False] for i in np.flatnonzero(e.labels == label)]
    for d in detections:
        rows += [(d.image_id, d.boxes[i].astype(float), d.scores[i]) for i in np.flatnonzero(d.labels == label)]
    tp, fp = [], []
    for image_id, box, _ in sorted(rows, key=lambda row: -row[2]):
        best, match = -1, None
        for thing in truth[image_id]:
            low, high = np.maximum(box[:2], thing[0][:2]), np.minimum(box[2:], thing[0][2:])
            shared = np.prod(np.clip(high - low, 0, None))
            overlap = shared / (np.prod(box[2:] - box[:2]) + np.prod(thing[0][2:] - thing[0][:2]) - shared)
            if overlap > best:
                best, match = overlap, thing
        ignored = best >= 0.5 and match[1]
        correct = best >= 0.5 and not match[1] and not match[2]
        if correct:
            match[2] = True
        tp.append(correct)
        fp.append(not correct and not ignored)
    total = sum(not thing[1] for things in truth.values() for thing in things)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall = [0, *tp / total, 1]
    precision = [0, *tp / np.maximum(tp + fp, 1), 0]
    if eleven_point:
        reached = [[p for r, p in zip(recall, precision, strict=True) if r > i / 10 - 1e-9] for i in range(11)]
        return sum(max(p) for p in reached) / 11
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


@pytest.mark.parametrize("eleven_point", [True, False])
def test_voc_average_precision_is_the_devkits(tiny_coco, eleven_point):
    data = tiny_coco
    rng = np.random.default_rng(2)
    hard = [Example(**{**vars(e), "difficult": rng.random(len(e.labels)) < 0.2}) for e in data.examples]
    data = Dataset(data.name, data.class_names, data.category_ids, tuple(hard))
    detections = perturbed(data, rng)
    result = evaluation.voc_average_precision(data, detections, eleven_point=eleven_point)
    defined = [(label, ap) for label, ap in enumerate(result.values()) if not math.isnan(ap)]
    assert len(defined) > 40
    for label, ap in defined:
        assert ap == pytest.approx(devkit_average_precision(data, detections, label, eleven_point), abs=1e-12)


# ------------------------------------------------------------------------------------- evaluate and the callback


def test_evaluate_is_json_with_none_for_nan(monkeypatch):
    data = dataset(cats(A, B, difficult=[1]), example("b", [C], [1]), names=("cat", "dog", "cow"))
    detections = [found("a", (A, 0.9, 0)), found("b", (FAR, 0.9, 1))]
    calls = []
    monkeypatch.setattr(inference, "detect", lambda *args: calls.append(args) or detections, raising=False)
    report = evaluation.evaluate("the detector", data, batch_size=3)
    assert calls == [("the detector", data, 3, 0)]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["images", *evaluation.COCO_FIGURES, "VOC_AP_11point", "VOC_AP_area", "per_class"]
    assert report["images"] == 2 and report["AP"] == pytest.approx(0.5) and report["APl"] is None
    assert report["VOC_AP_11point"] == report["VOC_AP_area"] == 0.5
    keys = ("AP", "AP50", "VOC_AP_11point", "VOC_AP_area", "objects")
    assert report["per_class"] == {
        "cat": dict(zip(keys, (pytest.approx(1), pytest.approx(1), 1, 1, 1), strict=True)),
        "dog": dict(zip(keys, (0, 0, 0, 0, 1), strict=True)),
        "cow": dict(zip(keys, (None, None, None, None, 0), strict=True)),
    }


@pytest.fixture
def improving_detector(monkeypatch):
    """A tiny model, and `detect` that finds one more of ten cats every time it is asked."""
    data = dataset(*(cats(A, image_id=i) for i in range(10)))
    times = []

    def detect(detector, dataset_, batch_size):
        times.append(detector)
        return [cats_found((A, 0.9), image_id=i) for i in range(len(times))]

    monkeypatch.setattr(inference, "detect", detect, raising=False)
    model = keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse", run_eagerly=True)
    return model, data, times


@pytest.mark.parametrize(
    ("every", "epochs_evaluated", "recall"),
    [(1, 4, [0.1, 0.2, 0.3, 0.4]), (2, 3, [0.1, 0.2, 0.2, 0.3]), (3, 2, [0.1, 0.1, 0.2, 0.2])],
)
def test_callback_fills_history_csv_and_checkpoint(improving_detector, tmp_path, every, epochs_evaluated, recall):
    model, data, times = improving_detector
    x = np.zeros((2, 1), np.float32)
    file = tmp_path / "best-{epoch}.weights.h5"
    callbacks = [
        evaluation.Evaluation(data, every=every, batch_size=2),
        keras.callbacks.ModelCheckpoint(
            file, monitor="val_AR1", mode="max", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    history = model.fit(x, x, epochs=4, verbose=0, callbacks=callbacks).history
    assert times == [model] * epochs_evaluated
    assert {f"val_{name}" for name in evaluation.COCO_FIGURES} <= set(history)
    assert history["val_AR1"] == pytest.approx(recall)
    improved = [epoch for epoch in range(1, 5) if epoch == 1 or recall[epoch - 1] > recall[epoch - 2]]
    assert sorted(path.name for path in tmp_path.glob("best*")) == [f"best-{epoch}.weights.h5" for epoch in improved]
    header, *lines = (tmp_path / "log.csv").read_text().splitlines()
    column = header.split(",").index("val_AR1")
    assert [float(line.split(",")[column]) for line in lines] == pytest.approx(recall)
    assert all(len(line.split(",")) == len(header.split(",")) for line in lines)


def test_callback_starts_afresh_in_every_fit(improving_detector):
    model, data, times = improving_detector
    x = np.zeros((2, 1), np.float32)
    callback = evaluation.Evaluation(data, every=5)
    for initial_epoch in (0, 2):
        model.fit(x, x, initial_epoch=initial_epoch, epochs=initial_epoch + 2, verbose=0, callbacks=[callback])
    assert len(times) == 2


# ----------------------------------------------------------------------------------------------------- keypoints


# Two people of 100 x 100 pixels with a nose and two eyes, whose sigmas are 0.026 and 0.025.
FACES = ("nose", "left_eye", "right_eye")
FACE = np.float32([(50, 50, 2), (40, 40, 2), (60, 40, 1)])


def people(*rows, crowd=(), areas=None):
    """A data set of one image; rows: (x at which a person of 100 pixels begins, its keypoints)."""
    boxes = [(x, 0, x + 100, 100) for x, _ in rows]
    one = example("a", boxes, [0] * len(rows), crowd=crowd, areas=areas, size=(200, 600))
    keypoints = np.float32([np.add(keypoints, (x, 0, 0)) for x, keypoints in rows]).reshape(-1, 3, 3)
    one = Example(**{**vars(one), "keypoints": keypoints})
    return Dataset("people", ("person",), (1,), (one,), keypoint_names=FACES)


def poses(*rows):
    """Detections of that image; rows: (x, score, by how many pixels all keypoints are moved)."""
    one = found("a", *(((x, 0, x + 100, 100), score, 0) for x, score, _ in rows))
    keypoints = np.float32([FACE[:, :2] + (x + moved, 0) for x, _, moved in rows]).reshape(-1, 3, 2)
    return [one._replace(keypoints=keypoints, keypoint_scores=np.ones((len(rows), 3), np.float32))]


def oks(distance, area=10_000):
    """The mean over the three keypoints."""
    return np.mean([math.exp(-(distance**2) / (2 * area * (2 * sigma) ** 2)) for sigma in (0.026, 0.025, 0.025)])


UNLABELLED = FACE * (1, 1, 0)
# data set, detections -> AP, AP50, AR. IoU thresholds are 0.5, 0.55, .. 0.95: of an OKS of 0.72 five are met.
assert 0.70 < oks(4.1) < 0.75
POSES = {
    "perfect": (people((0, FACE), (200, FACE)), poses((0, 0.9, 0), (200, 0.8, 0)), 1, 1, 1),
    "4.1 pixels off": (people((0, FACE)), poses((0, 0.9, 4.1)), 0.5, 1, 0.5),
    "far off": (people((0, FACE)), poses((0, 0.9, 40)), 0, 0, 0),
    "one is missed": (people((0, FACE), (200, FACE)), poses((0, 0.9, 0)), 51 / 101, 51 / 101, 0.5),
    "nothing found": (people((0, FACE)), poses(), 0, 0, 0),
    "nothing found at all": (people((0, FACE)), [], 0, 0, 0),
    "one too many": (people((0, FACE)), poses((0, 0.9, 0), (200, 0.8, 0)), 1, 1, 1),
    "a better one too many": (people((0, FACE)), poses((0, 0.8, 0), (200, 0.9, 0)), 0.5, 0.5, 1),
    "a person without keypoints does not count": (people((0, FACE), (200, UNLABELLED)), poses((0, 0.9, 0)), 1, 1, 1),
    "nor does it count to find it": (people((0, FACE), (200, UNLABELLED)), poses((0, 0.8, 0), (200, 0.9, 0)), 1, 1, 1),
    "nor a crowd": (people((0, FACE), (200, FACE), crowd=[1]), poses((0, 0.8, 0), (200, 0.9, 0)), 1, 1, 1),
    "a larger person forgives more": (people((0, FACE), areas=[40_000]), poses((0, 0.9, 4.1)), 0.9, 1, 0.9),
    "nobody": (people(), poses((0, 0.9, 0)), math.nan, math.nan, math.nan),
}
assert 0.90 < oks(4.1, 40_000) < 0.95


@pytest.mark.parametrize(("data", "detections", "ap", "ap50", "ar"), POSES.values(), ids=POSES)
def test_keypoints_by_hand(data, detections, ap, ap50, ar):
    figures = evaluation.keypoint_average_precision(data, detections)
    assert tuple(figures) == evaluation.KEYPOINT_FIGURES and len(figures) == 10
    expected = {"keypoint_AP": ap, "keypoint_AP50": ap50, "keypoint_AR": ar}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_joints_that_are_not_labelled_do_not_count():
    """However wrong they are."""
    detections = poses((0, 0.9, 0))
    detections[0].keypoints[0, 2] += 500
    assert evaluation.keypoint_average_precision(people((0, FACE)), detections)["keypoint_AP"] < 0.5
    half = FACE * [(1, 1, 1), (1, 1, 1), (1, 1, 0)]
    assert evaluation.keypoint_average_precision(people((0, half)), detections)["keypoint_AP"] == pytest.approx(1)


def test_same_keypoint_figures_as_pycocotools_on_the_original_file(shared_data, tmp_path):
    data = load_dataset(f"coco_keypoints:{shared_data / 'tiny_coco'}", "val")
    rng, detections, rows = np.random.default_rng(0), [], []
    for e in data.examples:
        count = len(e.boxes)
        size = (e.boxes[:, 2:] - e.boxes[:, :2]).max(axis=1)[:, None, None]
        keypoints = (e.keypoints[..., :2] + rng.normal(0, 0.02, (count, 17, 2)) * size).astype(np.float32)
        scores = rng.permutation(count).astype(np.float32) / 100 + 0.1
        one = Detections(e.image_id, e.boxes, scores, np.zeros(count, np.int32), keypoints, np.ones((count, 17)))
        detections.append(one)
        for box, score, places in zip(e.boxes.tolist(), scores.tolist(), keypoints.astype(float), strict=True):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            flat = np.pad(places, [(0, 0), (0, 1)], constant_values=1).ravel().tolist()
            row = {"image_id": e.image_id, "category_id": 1, "bbox": bbox, "score": score, "keypoints": flat}
            rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(shared_data / "tiny_coco/annotations/person_keypoints_val2017.json"))
        run = COCOeval(truth, truth.loadRes(rows), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = evaluation.keypoint_average_precision(data, detections[::-1])
    assert list(figures.values()) == pytest.approx(run.stats.tolist(), abs=1e-6)
    assert 0.2 < figures["keypoint_AP"] < 0.9


class Finds:
    """Something that finds these."""

    def __init__(self, keypoint_names):
        self.keypoint_names = keypoint_names


def test_keypoints_are_measured_where_there_are_any(monkeypatch):
    data = people((0, FACE))
    monkeypatch.setattr(inference, "detect", lambda *_: poses((0, 0.9, 0)))
    figures = evaluation.evaluate(Finds(FACES), data)
    assert figures["keypoint_AP"] == pytest.approx(1) and figures["keypoint_APm"] is None
    json.dumps(figures, allow_nan=False)
    for names in ((), ("nose",)):
        assert not set(evaluation.KEYPOINT_FIGURES) & set(evaluation.evaluate(Finds(names), data))
    callback = evaluation.Evaluation(data)
    callback.set_model(Finds(FACES))
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_keypoint_AP50"] == pytest.approx(1) and len(logs) == 22


# --------------------------------------------------------------------------------------------------------- masks


# The octagon of the middles of a box's sides lacks a triangle of 3/8 x 3/8 at each corner: 9/32 of the box.
MIDDLES = np.float32([(50, 0), (0, 50), (50, 100), (100, 50)])
OCTAGON = [62.5, 0, 37.5, 0, 0, 37.5, 0, 62.5, 37.5, 100, 62.5, 100, 100, 62.5, 100, 37.5]
BOX = [0, 0, 100, 0, 100, 100, 0, 100]


def moved(x):
    """The points of an object that begins at x."""
    return np.add(MIDDLES, (x, 0))


def masked(*rows, crowd=(), image_id="a", size=(200, 600)):
    """A data set of one image; rows: (x at which an object of 100 pixels begins, its polygon or None)."""
    one = example(image_id, [(x, 0, x + 100, 100) for x, _ in rows], [0] * len(rows), crowd=crowd, size=size)
    masks = tuple(
        None if polygon is None else coco_mask.frPyObjects([np.add(polygon, [x, 0] * (len(polygon) // 2))], *size)[0]
        for x, polygon in rows
    )
    labelled = [2 * (mask is not None and i not in crowd) for i, mask in enumerate(masks)]
    keypoints = [np.column_stack([moved(x), [v] * 4]) for (x, _), v in zip(rows, labelled, strict=True)]
    one = Example(**{**vars(one), "masks": masks, "keypoints": np.float32(keypoints).reshape(-1, 4, 3)})
    return Dataset("masks", ("thing",), (1,), (one,), keypoint_names=EXTREME_POINTS)


def octagons(*rows, image_id="a"):
    """Detections of that image; rows: (x, score)."""
    one = found(image_id, *(((x, 0, x + 100, 100), score, 0) for x, score in rows))
    keypoints = np.float32([moved(x) for x, _ in rows]).reshape(-1, 4, 2)
    return [one._replace(keypoints=keypoints, keypoint_scores=np.ones((len(rows), 4), np.float32))]


# data set, detections -> AP, AP50, AP75, AR. The IoU of box and octagon is 23/32 = 0.72, which meets five thresholds.
MASKS = {
    "perfect": (masked((0, OCTAGON), (200, OCTAGON)), octagons((0, 0.9), (200, 0.8)), 1, 1, 1, 1),
    "at the border of the image": (masked((540, OCTAGON)), octagons((540, 0.9)), 1, 1, 1, 1),
    "a box is no octagon": (masked((0, BOX)), octagons((0, 0.9)), 0.5, 1, 0, 0.5),
    "elsewhere": (masked((0, OCTAGON)), octagons((90, 0.9)), 0, 0, 0, 0),
    "one is missed": (masked((0, OCTAGON), (200, OCTAGON)), octagons((0, 0.9)), 51 / 101, 51 / 101, 51 / 101, 0.5),
    "nothing found": (masked((0, OCTAGON)), octagons(), 0, 0, 0, 0),
    "nothing found at all": (masked((0, OCTAGON)), [], 0, 0, 0, 0),
    "a better one too many": (masked((0, OCTAGON)), octagons((0, 0.8), (200, 0.9)), 0.5, 0.5, 0.5, 1),
    "but not in a crowd": (
        masked((0, OCTAGON), (200, BOX), crowd=[1]),
        octagons((0, 0.8), (200, 0.9), (200, 0.9)),
        *(1, 1, 1, 1),
    ),
    "nor where no mask is known": (masked((0, OCTAGON), (200, None)), octagons((0, 0.8), (200, 0.9)), 1, 1, 1, 1),
    "which may be missed, too": (masked((0, OCTAGON), (200, None)), octagons((0, 0.8)), 1, 1, 1, 1),
    "nothing there": (masked(), octagons((0, 0.9)), math.nan, math.nan, math.nan, math.nan),
}


@pytest.mark.parametrize(("data", "detections", "ap", "ap50", "ap75", "ar"), MASKS.values(), ids=MASKS)
def test_masks_by_hand(data, detections, ap, ap50, ap75, ar):
    figures = evaluation.mask_average_precision(data, detections)
    assert tuple(figures) == evaluation.MASK_FIGURES and len(figures) == 12
    expected = {"mask_AP": ap, "mask_AP50": ap50, "mask_AP75": ap75, "mask_AR100": ar}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_masks_of_images_of_other_sizes():
    """Whose ids are not in their order, either."""
    data = masked((0, OCTAGON), image_id="b", size=(300, 200))
    data = Dataset(**{**vars(data), "examples": (*data.examples, *masked((500, OCTAGON)).examples)})
    detections = octagons((500, 0.9)) + octagons((0, 0.8), image_id="b")
    assert evaluation.mask_average_precision(data, detections)["mask_AP"] == pytest.approx(1)


def test_same_mask_figures_as_pycocotools_on_the_original_file(shared_data):
    data = load_dataset(f"coco_masks:{shared_data / 'tiny_coco'}", "val")
    rng, detections, rows = np.random.default_rng(0), [], []
    for e in data.examples:
        count = len(e.boxes)
        size = (e.boxes[:, 2:] - e.boxes[:, :2])[:, None]
        keypoints = (e.keypoints[..., :2] + rng.normal(0, 0.02, (count, 4, 2)) * size).astype(np.float32)
        scores = rng.permutation(count).astype(np.float32) / 100 + 0.1
        detections.append(Detections(e.image_id, e.boxes, scores, e.labels, keypoints, np.ones((count, 4))))
        for (t, left, b, r), score, label in zip(keypoints.astype(float), scores.tolist(), e.labels, strict=True):
            w, h = (r[0] - left[0]) / 8, (b[1] - t[1]) / 8
            octagon = [
                (min(t[0] + w, r[0]), t[1]),
                (max(t[0] - w, left[0]), t[1]),
                (left[0], max(left[1] - h, t[1])),
                (left[0], min(left[1] + h, b[1])),
                (max(b[0] - w, left[0]), b[1]),
                (min(b[0] + w, r[0]), b[1]),
                (r[0], min(r[1] + h, b[1])),
                (r[0], max(r[1] - h, t[1])),
            ]
            octagon = np.clip(octagon, 0, (e.width, e.height)).ravel().tolist()
            mask = coco_mask.merge(coco_mask.frPyObjects([octagon], e.height, e.width))
            category_id = data.category_ids[label]
            rows.append({"image_id": e.image_id, "category_id": category_id, "segmentation": mask, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(shared_data / "tiny_coco/annotations/instances_val2017.json"))
        run = COCOeval(truth, truth.loadRes(rows), "segm")
        run.evaluate()
        run.accumulate()
        run.summarize()
    figures = evaluation.mask_average_precision(data, detections[::-1])
    assert list(figures.values()) == pytest.approx(run.stats.tolist(), abs=1e-6)
    assert 0.2 < figures["mask_AP"] < 0.9


def test_masks_are_measured_where_there_are_any(monkeypatch):
    data = masked((0, OCTAGON))
    monkeypatch.setattr(inference, "detect", lambda *_: octagons((0, 0.9)))
    figures = evaluation.evaluate(Finds(EXTREME_POINTS), data)
    assert figures["mask_AP"] == figures["keypoint_AP"] == pytest.approx(1) and figures["mask_APs"] is None
    json.dumps(figures, allow_nan=False)
    assert not set(evaluation.MASK_FIGURES) & set(evaluation.evaluate(Finds(()), data))
    without = Dataset(**{**vars(data), "examples": (Example(**{**vars(data.examples[0]), "masks": None}),)})
    assert not set(evaluation.MASK_FIGURES) & set(evaluation.evaluate(Finds(EXTREME_POINTS), without))
    callback = evaluation.Evaluation(data)
    callback.set_model(Finds(EXTREME_POINTS))
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_mask_AP50"] == pytest.approx(1) and len(logs) == 34
