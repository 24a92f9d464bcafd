"""What all detectors share: the way from raw outputs to a loss, to detections, and to original pixels."""

import keras
import numpy as np
from keras import ops

from tfdet.backbones.stand_in import StandIn
from tfdet.distribution import num_replicas
from tfdet.errors import NonFiniteLossError, require_tensorflow
from tfdet.keras_multi_worker import prepare_for_workers


class Detector(keras.Model):
    """A Keras model that knows its algorithm's encoder, loss and decoder.

    A subclass builds its layers, defines `call(images [B, H, W, 3]) -> {name: raw output}` and sets

        encoder(boxes [M, 4], labels [M]) -> {name: target}      per image, in the input pipeline (see `encode`)
        detection_loss(targets, outputs) -> {part: scalar}       `detection_loss.parts` names them in advance
        decoder(outputs) -> detections                           in pixels of the fed image
        resizer                                                  from any image to the one that is fed
        augmentation(image, boxes, labels, seed) -> the same     to the fed image; training only
        settings                                                 what its constructor takes beside class_names, by name

    so that `compile(optimizer)`, `fit`, `evaluate`, `predict`, `save` and `keras.models.load_model` are plain Keras.

    Detections are {"boxes" float32 [B, K, 4] xyxy, "scores" float32 [B, K], "labels" int32 [B, K], "num_detections"
    int32 [B]}, best first, padded with 0, 0 and -1. A detector that finds keypoints says "keypoints" float32
    [B, K, J, 2], x and y, and "keypoint_scores" float32 [B, K, J] as well.

    A detector of heatmaps may have `peaks(images, scale)` beside `detect`, for pictures of what its boxes are made of
    (`drawing.draw_peaks`): see `unscaled_peaks`.
    """

    def __init__(self, class_names, **kwargs):
        """class_names: a name for every class, or the number of classes, which are then called "0", "1", ..."""
        # Or under a bfloat16 policy Keras would cast the images: pixels of 128..255 become whole numbers.
        super().__init__(autocast=False, **kwargs)
        names = range(class_names) if isinstance(class_names, int) else class_names
        self.class_names = tuple(str(name) for name in names)

    @property
    def num_classes(self):
        return len(self.class_names)

    @property
    def loss(self):
        return self.detection_loss

    @loss.setter
    def loss(self, value):
        # Keras' compile() stores its `loss` argument here.
        if value is not None:
            raise ValueError("a detector brings its own loss: call compile(optimizer) without one")

    def get_config(self):
        settings = keras.saving.serialize_keras_object(self.settings)
        return {"class_names": self.class_names, **settings, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**keras.saving.deserialize_keras_object(config))

    def create_weights(self, height, width):
        """Called by a subclass when all else is set: makes every weight, for fed images of that size in pixels."""
        if isinstance(self.backbone, StandIn):  # only the targets are wanted
            return
        self._part_means = [keras.metrics.Mean(name=f"{part}_loss") for part in self.detection_loss.parts]
        self(keras.Input((height, width, 3)))

    def build(self, input_shape):
        """Nothing: calling the layers builds them. (Keras' own build() warns of layers that are not built yet.)"""

    wants_crowds = False  # whether the encoder takes crowd regions, as boxes with the label -1
    main_figure = "AP"  # of those of `tfdet.evaluate`: by which a recipe knows its best model
    keypoint_names = ()  # of those it finds of each object; then `augmentation` and `encode` take keypoints as well

    def encode(self, image, boxes, labels, seed):
        """The encoder's targets for one fed image [H, W, 3]; a subclass passes on what else its encoder wants.

        seed: int, by which whatever is drawn by lot is drawn.
        """
        return self.encoder(boxes, labels)

    def samples(self, image, boxes, labels, seed, *keypoints):
        """Which samples the encoder calls positive there, of what is given to `encode`: for `tfdet inspect`.

        Returns:
            a tuple of `tfdet.inspection.samples.Samples`, one for each stage.
        """
        raise NotImplementedError(f"{self.name} does not say which samples it has")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if sample_weight is not None:
            raise ValueError("detectors take no sample weights")
        parts = self.detection_loss(y, y_pred)
        batch_size = ops.shape(ops.convert_to_tensor(keras.tree.flatten(y)[0]))[0]
        for mean in self._part_means:
            # Each replica holds its share of the sum; the mean over replicas is logged.
            mean.update_state(parts[mean.name.removesuffix("_loss")] * num_replicas(), sample_weight=batch_size)
        total = sum(parts.values())
        for penalty in self.losses:  # weight decay and the like
            total = total + ops.cast(penalty, "float32") / num_replicas()
        return total

    def fit(self, x=None, *args, callbacks=None, **kwargs):
        """keras.Model.fit; a loss that is not finite ends it with NonFiniteLossError, which names the part."""
        callbacks = callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
        callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or [])
        kwargs.setdefault("shuffle", isinstance(x, np.ndarray))  # Keras warns of it where a pipeline does it
        prepare_for_workers(self)
        return super().fit(x, *args, callbacks=[StopOnNonFiniteLoss(), *callbacks], **kwargs)

    def evaluate(self, *args, **kwargs):
        """keras.Model.evaluate: the loss and its parts; see `tfdet.evaluate` for what is found."""
        prepare_for_workers(self)
        return super().evaluate(*args, **kwargs)

    def make_train_function(self, force=False):
        """keras.Model's; of a step that makes the optimizer's variables on its way TensorFlow would trace two."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def make_predict_function(self, force=False):
        """keras.Model's, but not compiled by XLA, whatever `jit_compile` says: NMS has no XLA kernel.

        Raises:
            TfdetError: Keras computes with another backend.
        """
        require_tensorflow("detection")
        jit_compile, self.jit_compile = self.jit_compile, False
        super().make_predict_function(force)
        self.jit_compile = jit_compile
        return self.predict_function

    def predict_step(self, data):
        """Images [B, H, W, 3] of any one size -> detections in pixels of those images.

        The input pipeline, whose images differ in size, resizes them itself and passes {"images" as the detector is fed
        them, "scale" [B, 4] that took boxes there}.
        """
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(images, dict):
            return self.detect(images["images"], images["scale"])
        height, width = ops.shape(images)[1:3]
        return self.detect(self.resizer(images), self.resizer.scale(height, width)[None])

    def detect(self, images, scale):
        """Fed images [B, h, w, 3] and the factors [B or 1, 4] that took boxes there -> detections in the originals."""
        return unscaled(self.decoder(self(images, training=False)), scale)


def unscaled(detections, scale):
    """Detections in pixels of images that the factors [B or 1, 4] have scaled -> in those of the images before."""
    found = {**detections, "boxes": detections["boxes"] / scale[:, None, :]}
    if "keypoints" in found:
        found["keypoints"] = found["keypoints"] / scale[:, None, None, :2]
    return found


def unscaled_peaks(peaks, scale):
    """The best peaks of heatmaps, {name: {"points" [B, N, 2], x and y, "scores" [B, N], "labels" int32 [B, N]}} -> the
    same with the points in pixels of the images before the factors [B or 1, 4] have scaled them.

    The names are "top_left" and "bottom_right", "centre", or those of `skeleton.EXTREME_POINTS`. Where there are fewer
    than N peaks the rest has the score 0.
    """
    return {name: {**found, "points": found["points"] / scale[:, None, :2]} for name, found in peaks.items()}


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends training at the first step whose loss is NaN or infinite, before anything is saved, and says which part."""

    def on_train_batch_end(self, batch, logs=None):
        bad = {name: value for name, value in (logs or {}).items() if not np.all(np.isfinite(value))}
        if bad:
            parts = ", ".join(f"{name} is {value}" for name, value in bad.items() if name != "loss") or "the loss"
            raise NonFiniteLossError(f"step {batch + 1} of this epoch: {parts}; training stopped")
