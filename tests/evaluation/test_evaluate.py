"""All figures together, and as a callback inside `fit`."""

import json

import keras
import numpy as np
import pytest
from hand_made import FAR, A, B, C, cats, cats_found, dataset, example, found

from tfdet import evaluation, inference


def test_evaluate_is_json_with_none_for_nan(monkeypatch):
    data = dataset(cats(A, B, difficult=[1]), example("b", [C], [1]), names=("cat", "dog", "cow"))
    detections = [found("a", (A, 0.9, 0)), found("b", (FAR, 0.9, 1))]
    calls = []
    monkeypatch.setattr(inference, "detect", lambda *args: calls.append(args) or detections, raising=False)
    report = evaluation.evaluate("the detector", data, batch_size=3)
    assert calls == [("the detector", data, 3, 0, None)]
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

    def detect(detector, dataset_, batch_size, verbose, service):
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
