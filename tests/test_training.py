import dataclasses
import math
import tomllib

import keras
import numpy as np
import pytest

from tfdet import commandline, runs, ssd300, training, validation_batches
from tfdet.errors import TfdetError

SETTINGS = training.Settings(batch_size=2, steps=100, learning_rate=0.1, drops=(), warmup_steps=20, weight_decay=0.01)
HALF_COSINE = 0.1 * (1 + math.cos(math.pi / 4)) / 2


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"drops": (10, 20), "warmup_steps": 0}, {0: 0.1, 10: 0.1, 11: 0.01, 20: 0.01, 21: 0.001, 99: 0.001}),
        ({"drops": (10,), "warmup_steps": 5}, {0: 0.0, 1: 0.02, 5: 0.1, 10: 0.1, 11: 0.01}),
        # A line to the peak at 20, then the half turn of a cosine over the 80 steps that are left.
        ({}, {0: 0.0, 5: 0.025, 20: 0.1, 40: HALF_COSINE, 60: 0.05, 100: 0.0}),
        ({"drops": None}, {5: 0.025, 60: 0.05}),
        ({"warmup_steps": 0}, {0: 0.1, 25: HALF_COSINE, 50: 0.05, 100: 0.0}),
        ({"steps": 10}, {0: 0.0, 5: 0.1, 10: 0.0}),  # a warm-up longer than half the run is cut
    ],
)
def test_learning_rate(changes, rates):
    schedule = training.learning_rate(dataclasses.replace(SETTINGS, **changes))
    assert {step: float(schedule(step)) for step in rates} == {
        step: pytest.approx(rate, rel=1e-4, abs=1e-7) for step, rate in rates.items()
    }


@pytest.mark.parametrize(("name", "kind"), [("sgd", keras.optimizers.SGD), ("adam", keras.optimizers.Adam)])
def test_the_optimizer_follows_the_schedule(name, kind):
    optimizer = training.optimizer(dataclasses.replace(SETTINGS, optimizer=name))
    assert type(optimizer) is kind
    optimizer.iterations.assign(10)
    assert float(optimizer.learning_rate) == pytest.approx(0.05)  # half of the warm-up
    assert name != "sgd" or optimizer.momentum == 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1: 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1: -1"),
        ({"steps": 0}, "--steps must be at least 1: 0"),
        ({"epochs": -1}, "--epochs must be at least 0: -1"),
        ({"evaluate_every": 0}, "--evaluate-every must be at least 1: 0"),
        ({"learning_rate": -0.1}, "--learning-rate must be at least 0: -0.1"),
        ({"learning_rate": math.nan}, "--learning-rate must be at least 0: nan"),
        ({"warmup_steps": -1}, "--warmup-steps must be at least 0: -1"),
        ({"weight_decay": -1.0}, "--weight-decay must be at least 0: -1.0"),
        ({"drops": (0, 5)}, r"--drops must be at least 1: \(0, 5\)"),
        ({"drops": (5, 3)}, r"--drops must rise: \(5, 3\)"),
        (
            {"cache": True, "data_service": "grpc://a:1"},
            "--cache: keeps decoded images in this process, but with --data-service others decode them",
        ),
    ],
)
def test_numbers_that_cannot_be(changes, message):
    with pytest.raises(TfdetError, match=f"^{message}$"):
        training.fill_in(dataclasses.replace(SETTINGS, **changes), {})
    assert training.fill_in(dataclasses.replace(SETTINGS, epochs=0), {}).epochs == 0


DROPS = keras.optimizers.schedules.PiecewiseConstantDecay([6, 8], [0.8, 0.4, 0.2])
COSINE = keras.optimizers.schedules.CosineDecay(0.8, 8)
# Schedule, steps of the warm-up -> {step: rate}.
WARM_UPS = {
    "before the drops": (DROPS, 4, {0: 0.0, 1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8, 6: 0.8, 7: 0.4, 8: 0.4, 9: 0.2, 99: 0.2}),
    "over a drop": (DROPS, 10, {0: 0.0, 5: 0.4, 6: 0.48, 7: 0.28, 8: 0.32, 9: 0.18, 10: 0.2, 11: 0.2}),
    "of one step": (DROPS, 1, {0: 0.0, 1: 0.8, 2: 0.8}),
    "of a cosine": (COSINE, 4, {0: 0.0, 2: 0.4 * (1 + math.cos(math.pi / 4)) / 2, 4: 0.4, 8: 0.0, 9: 0.0}),
}


@pytest.mark.parametrize(("schedule", "steps", "rates"), WARM_UPS.values(), ids=WARM_UPS)
@pytest.mark.parametrize("kind", [int, lambda step: keras.ops.convert_to_tensor(step, "int64")], ids=["int", "int64"])
def test_warm_up_by_hand(schedule, steps, rates, kind):
    warm_up = training.WarmUp(schedule, steps)
    found = {step: float(warm_up(kind(step))) for step in rates}
    assert found == {step: pytest.approx(rate, rel=1e-6, abs=1e-9) for step, rate in rates.items()}


def test_warm_up_is_saved_with_the_optimizer(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(training.WarmUp(DROPS, 4)), loss="mse")
    model.fit(np.ones((3, 1)), np.ones((3, 1)), batch_size=1, verbose=0)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.6)  # after three steps
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert float(again.learning_rate) == pytest.approx(0.6)
    warm_up = again._learning_rate
    assert isinstance(warm_up, training.WarmUp)
    expected = WARM_UPS["before the drops"][2]
    assert {step: float(warm_up(step)) for step in expected} == {s: pytest.approx(r) for s, r in expected.items()}


DEFAULTS = {"batch_size": 8, "steps": 2000, "drops": (5, 6), "warmup_steps": 200, "test_split": "test", "cache": True}
# What is given -> what is there then, of these.
FILLED_IN = {
    "nothing": ({}, {"batch_size": 8, "steps": 2000, "epochs": None, "drops": (5, 6), "test_split": "test"}),
    "some": ({"batch_size": 3, "test_split": "val"}, {"batch_size": 3, "steps": 2000, "test_split": "val"}),
    "what is false, but given": ({"warmup_steps": 0, "drops": ()}, {"warmup_steps": 0, "drops": (), "batch_size": 8}),
    "steps": ({"steps": 7}, {"steps": 7, "epochs": None}),
    "epochs instead of steps": ({"epochs": 7}, {"steps": None, "epochs": 7}),
    "no epochs at all": ({"epochs": 0}, {"steps": None, "epochs": 0}),
    "what is never none": ({}, {"cache": False, "seed": 0}),
    "what has no default": ({}, {"learning_rate": None, "output": None}),
}


@pytest.mark.parametrize(("given", "expected"), FILLED_IN.values(), ids=FILLED_IN)
def test_what_is_not_given_is_filled_in(given, expected):
    settings = training.fill_in(training.Settings(**given), DEFAULTS)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_steps_replace_epochs_of_the_defaults():
    defaults = {"epochs": 30, "batch_size": 8}
    assert training.fill_in(training.Settings(), defaults).epochs == 30
    settings = training.fill_in(training.Settings(steps=7), defaults)
    assert (settings.steps, settings.epochs, settings.batch_size) == (7, None, 8)


@pytest.mark.parametrize(
    ("steps", "epochs", "images", "expected"),
    [
        (100, None, 20, (10, 100)),  # (epochs, steps), 10 steps an epoch
        (104, None, 20, (10, 100)),
        (106, None, 21, (11, 110)),
        (1, None, 20, (1, 10)),
        (100, 3, 20, (3, 30)),
        (100, 0, 20, (0, 0)),
    ],
)
def test_whole_epochs(steps, epochs, images, expected):
    settings = training.with_whole_epochs(dataclasses.replace(SETTINGS, steps=steps, epochs=epochs), images)
    assert (settings.epochs, settings.steps) == expected


def test_weight_decay_pulls_kernels_and_nothing_else(make_dataset):
    """Without any object an SSD's loss is nothing but the decay: one step of SGD shows what it is the gradient of."""
    keras.utils.set_random_seed(0)
    detector = ssd300(2, "vgg_slim")
    training.decay_weights(detector, 0.01)
    detector.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    before = [variable.numpy() for variable in detector.trainable_variables]
    logs = detector.fit(validation_batches(make_dataset((50, 60, [], [])), detector, 1), verbose=0).history

    kernels = 0
    for variable, old in zip(detector.trainable_variables, before, strict=True):
        is_kernel = variable.name == "kernel"
        kernels += is_kernel
        np.testing.assert_allclose(variable.numpy(), old * (0.99 if is_kernel else 1), rtol=1e-5, atol=1e-9)
    assert 0 < kernels < len(before)
    penalty = 0.01 / 2 * sum(float(np.sum(old**2)) for old in before if old.ndim > 1)
    assert logs["loss"] == [pytest.approx(penalty, rel=1e-5)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": 'csv:"quoted" \\ ü.csv', "drops": (80, 90), "cache": True, "precision": "mixed_bfloat16"},
        {"drops": (), "learning_rate": 1e-5, "epochs": 0, "test_split": "none", "seed": -1},
    ],
)
def test_written_settings_are_read_again(tmp_path, changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    path = tmp_path / "settings.toml"
    runs.write_settings(dataclasses.replace(settings, config="other.toml", resume="other"), path)
    assert commandline.parse(training.Settings, ["--config", str(path)]) == dataclasses.replace(
        settings, config=str(path)
    )


def run_folder(settings):
    folder = runs.find_folder(settings, "ssd300")
    runs.make_folder(folder, settings)
    return folder


def test_a_run_folder_is_made_with_its_settings(tmp_path):
    settings = dataclasses.replace(SETTINGS, output=str(tmp_path / "runs" / "one"))
    folder = run_folder(settings)
    assert folder == tmp_path / "runs" / "one"
    assert tomllib.loads((folder / "settings.toml").read_text())["learning_rate"] == 0.1
    with pytest.raises(TfdetError, match=r"one: this run folder is not empty.*--resume"):
        run_folder(settings)


def test_a_run_folder_has_a_name_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run_folder(dataclasses.replace(SETTINGS, data="voc:some/where"))
    assert folder.parent.name == "runs"
    assert folder.name.startswith("ssd300-voc-20")


@pytest.fixture
def table(tmp_path, draw_image):
    """A CSV file with 3 images in "train", one of them broken, 2 in "val" and 1 in "test"."""
    lines = ["path,x1,y1,x2,y2,label,split"]
    for i, split in enumerate(("train", "train", "train", "val", "val", "test")):
        (tmp_path / f"{i}.png").write_bytes(draw_image(40, 50, [(5, 5, 30, 30)], [0]) if i else b"")
        lines += [f"{i}.png,5,5,30,30,red,{split}"] * (1 + (i == 1))
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    return f"csv:{tmp_path / 'boxes.csv'}"


@pytest.mark.parametrize(("test_split", "names"), [(None, ["train", "val", "val"]), ("test", ["train", "val", "test"])])
def test_splits_are_loaded_and_what_is_left_out_is_said(table, capsys, test_split, names):
    settings = dataclasses.replace(SETTINGS, data=table, on_error="skip", test_split=test_split)
    splits = training.load_splits(settings)
    assert [split.name for split in splits] == [f"csv:boxes {name}" for name in names]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "csv:boxes train: 2 images, 3 boxes; 1 left out or clipped"
    assert lines[1].startswith("  left out: ")
    assert "0.png" in lines[1]
    assert lines[2] == "csv:boxes val: 2 images, 2 boxes"
    assert len(lines) == 1 + len(set(names))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"on_error": "skip", "batch_size": 3}, "csv:boxes train: fewer images than one batch of 3"),
        ({}, "0.png"),
        ({"on_error": "skip", "val_split": "dev"}, 'no split "dev"'),
    ],
)
def test_splits_that_cannot_be_used(table, changes, message):
    with pytest.raises(TfdetError, match=message):
        training.load_splits(dataclasses.replace(SETTINGS, data=table, **changes))


@pytest.fixture
def quick_run(table, tmp_path, monkeypatch):
    """(a function: settings -> {what `training.run` did: with what}, a function: weight -> a model).

    Nothing is trained. A model is known by its weight: 1 when it is built, 2 in the best.keras that training leaves.
    """

    def model(weight=1.0):
        made = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        made.compile("sgd", loss="mse")
        made.layers[0].kernel.assign_add([[weight - 1.0]] * 2)
        return made

    def weight(made):
        return float(made.layers[0].kernel[0, 0])

    def go(**changes):
        seen = {}

        def build(settings, dataset):
            seen.update(built_for=dataset.name, steps=settings.steps, policy=keras.config.dtype_policy().name)
            seen["drawn"] = np.random.rand()
            return model()

        def fit(made, train, val, settings, folder):
            seen.update(trained=weight(made), splits=(train.name, val.name), epochs=settings.epochs)
            seen["decay"] = float(made.layers[0].kernel.regularizer.l2)
            if settings.epochs:
                model(2.0).save(folder / "best.keras")

        def report(made, test, folder):
            seen.update(reported=weight(made), tested=test.name)
            return {"AP": 0.25, "AP50": 0.5}

        monkeypatch.setattr(training, "fit", fit)
        monkeypatch.setattr(training.runs, "report", report)
        given = {"data": table, "on_error": "skip", "test_split": "test", "output": str(tmp_path / "run")}
        settings = dataclasses.replace(SETTINGS, **{**given, **changes})
        seen["folder"] = training.run(settings, "some_recipe", build)
        return seen

    yield go, model
    keras.mixed_precision.set_dtype_policy("float32")


def test_a_run_reports_on_its_best_model(quick_run, tmp_path, capsys):
    go, _ = quick_run
    seen = go(steps=3, precision="mixed_bfloat16")
    assert seen["folder"] == tmp_path / "run"
    assert (seen["trained"], seen["reported"]) == (1, 2)
    assert (seen["epochs"], seen["steps"]) == (3, 3)  # two images, two a batch
    assert seen["built_for"] == seen["splits"][0] == "csv:boxes train"
    assert (seen["splits"][1], seen["tested"]) == ("csv:boxes val", "csv:boxes test")
    assert seen["policy"] == "mixed_bfloat16"
    assert seen["decay"] == pytest.approx(0.005)
    written = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert (written["steps"], written["epochs"], written["precision"]) == (3, 3, "mixed_bfloat16")
    assert "csv:boxes test (1 images): AP 0.250, AP50 0.500" in capsys.readouterr().out


def test_a_run_without_epochs_reports_on_the_model_as_it_was_built(quick_run, tmp_path):
    go, _ = quick_run
    seen = go(epochs=0)
    assert (seen["trained"], seen["reported"]) == (1, 1)
    assert float(keras.models.load_model(tmp_path / "run" / "best.keras").layers[0].kernel[0, 0]) == 1


def test_a_resumed_run_goes_on_with_its_last_checkpoint(quick_run, tmp_path):
    go, model = quick_run
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    model(9.0).save(checkpoints / "epoch-00001.keras")
    model(3.0).save(checkpoints / "epoch-00002.keras")
    seen = go(steps=3, resume=str(tmp_path / "run"), output="elsewhere")
    assert seen["folder"] == tmp_path / "run"
    assert (seen["trained"], seen["reported"]) == (3, 2)
    assert seen["decay"] == pytest.approx(0.005)  # no part of a checkpoint
    assert "built_for" not in seen


def test_a_run_that_was_cut_off_before_its_first_checkpoint_begins_anew(quick_run, tmp_path):
    go, _ = quick_run
    (tmp_path / "run").mkdir()
    seen = go(steps=3, resume=str(tmp_path / "run"))
    assert (seen["folder"], seen["trained"], seen["reported"]) == (tmp_path / "run", 1, 2)


def test_weights_follow_from_the_seed(quick_run, tmp_path):
    go, _ = quick_run
    first, other, again = (go(seed=seed, output=f"{tmp_path}/{i}")["drawn"] for i, seed in enumerate((1, 2, 1)))
    assert first == again != other
