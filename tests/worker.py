"""What the workers of `test_keras_multi_worker.py` run, each in a process of its own."""

import json
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import tfdet
from tfdet import commandline, distribution, evaluation, runs, serving, training
from tfdet.data import pipeline
from tfdet.detectors.centernet import centernet


def gradients(data, batch_size):
    """{name: array}: the step that SSD takes on the first batch, and its losses.

    In double precision: in float32 the other order of sums turns a ReLU here and there, or the choice of a negative.
    """
    train = tfdet.load_dataset(f"csv:{data}")
    keras.mixed_precision.set_dtype_policy("float64")
    with distribution.strategy_scope():
        keras.utils.set_random_seed(0)
        model = tfdet.ssd300(train.class_names, "vgg_slim")
        model.compile(keras.optimizers.SGD(1.0))
    before = model.get_weights()
    batches = pipeline.training_batches(train, model, batch_size, seed=1, start_step=0)
    logs = model.fit(batches, steps_per_epoch=1, verbose=0).history
    keras.mixed_precision.set_dtype_policy("float32")
    steps = {str(i): old - new for i, (old, new) in enumerate(zip(before, model.get_weights(), strict=True))}
    return steps | {name: np.array(value) for name, value in logs.items()}


def evaluated(data):
    """{name: array} of what is found in the validation images, and how well, by a detector that knows nothing."""
    val = tfdet.load_dataset(f"csv:{data}", "val")
    with distribution.strategy_scope():
        keras.utils.set_random_seed(0)
        model = small(val.class_names)
    detections = evaluation._detections(model, val, 2)
    found = {name: np.concatenate([getattr(one, name) for one in detections]) for name in ("boxes", "scores", "labels")}
    figures = evaluation.evaluate(model, val)
    found |= {f"figure {name}": np.array(figures[name], np.float64) for name in evaluation.COCO_FIGURES}
    batches = pipeline.validation_batches(val, model, 2).take(2)  # each has an image for each of two workers
    return found | {"loss": model.evaluate(batches, verbose=0)[0]}


def together(data, batch_size, folder):
    """Everything that workers do together, once; the first one writes down what came of it."""
    number = distribution.worker_number(distribution.strategy())
    parts = distribution.gathered({"worker": number, "rows": np.arange(5 * number), "none": b""})
    squares = distribution.dealt_out([1, 2, 3, 4, 5], lambda items: [(item**2, number) for item in items])
    steps, found = gradients(data, batch_size), evaluated(data)
    if distribution.is_chief():
        np.savez(folder / "steps.npz", **steps)
        np.savez(folder / "found.npz", **found)
        workers, rows = [part["worker"] for part in parts], [part["rows"].tolist() for part in parts]
        (folder / "said.json").write_text(json.dumps({"workers": workers, "rows": rows, "squares": squares}))
    distribution.from_chief(None)


def small(class_names):
    """A detector of one convolution."""
    image = keras.Input((None, None, 3))
    backbone = keras.Model(image, {"stack1": keras.layers.Conv2D(4, 4, 4)(image)})
    model = centernet(class_names, backbone, side=64)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def recipe(data, batch_size, folder, killed=None):
    """Four epochs of a recipe; `killed`: "NUMBER EPOCH" of the worker that kills itself at the end of that epoch."""
    settings = training.Settings(
        data=f"csv:{data}", output=str(folder), batch_size=batch_size, epochs=4, learning_rate=0.01, weight_decay=0.0
    )

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            victim, epoch = map(int, killed.split())
            done = int(self.model.optimizer.iterations.numpy()) * settings.epochs // 8
            if distribution.worker_number(distribution.strategy()) == victim and done == epoch:
                os.kill(os.getpid(), signal.SIGKILL)

    if killed:
        fit = keras.Model.fit
        keras.Model.fit = lambda *args, callbacks, **kwargs: fit(*args, callbacks=[*callbacks, Kill()], **kwargs)
    serving.export = lambda model, folder: folder.mkdir()
    runs.say_what_was_made = lambda *_: print("the end")
    commandline.run(lambda: training.run(settings, "small", lambda settings, train: small(train.class_names)))


if __name__ == "__main__":
    what, data, batch_size, folder, *rest = sys.argv[1:]
    {"together": together, "recipe": recipe}[what](data, int(batch_size), Path(folder), *rest)
