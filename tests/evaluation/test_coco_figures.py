"""COCO's figures of boxes against pycocotools run directly."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from hand_made import dataset, example, found, perturbed
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tfdet import evaluation
from tfdet.data.dataset import Dataset, Example
from tfdet.errors import DataError


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
