"""SavedModel export for TensorFlow Serving: from encoded images to detections in their pixels, all in the graph."""

import math
import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from tfdet.data.images import decode
from tfdet.errors import TfdetError, require_tensorflow

# Sizes of the warm-up batches: those that the README's batching settings allow.
BATCH_SIZES = (1, 2, 4, 8)
PADDING = (math.nan, 0.0, False)  # of images that are smaller than others of their batch (see tfdet.resizers)


def export(detector, folder, version=1):
    """Write `folder/version/`, which TF Serving loads as it is.

    Signatures, both with detections as the output (see Detector), in pixels of the original images:
        serving_default: `image_bytes` string [B], encoded JPEG or PNG of any sizes (REST: {"b64": ...});
        images: `images` uint8 [B, H, W, 3], RGB.
    TF Serving puts requests of several people into one batch, so bytes that cannot be decoded are no error: they get
    num_detections -1 (and boxes 0, scores 0, labels -1), and the images beside them what they always get.

    In `assets.extra` lie the names of the classes, `class_names.txt`, one a line, the first is label 0, those of the
    keypoints, `keypoint_names.txt`, if the detector finds any; and requests that TF Serving runs before it opens a
    version to anyone, `tf_serving_warmup_requests`.

    Raises:
        FileExistsError: there is such a version.
        TfdetError: Keras computes with another backend than TensorFlow.
    Returns:
        Path of the version's folder.
    """

    def from_images(images):
        return detector.predict_step(images)

    def from_bytes(image_bytes):
        # Sizes differ, so each image is decoded and resized by itself; the network sees one batch.
        prepared = tf.data.Dataset.from_tensor_slices(image_bytes).map(prepare, tf.data.AUTOTUNE)
        batch_size = tf.shape(image_bytes, tf.int64)[0]
        images, scale, readable = prepared.padded_batch(batch_size, padding_values=PADDING).get_single_element()
        found = detector.detect(images, scale)
        return {name: _only_where(readable, name, value) for name, value in found.items()}

    @tf.autograph.experimental.do_not_convert
    def prepare(encoded):
        image, readable = decode_if_possible(encoded)
        height, width, _ = tf.unstack(tf.shape(image))
        return detector.resizer(image), detector.resizer.scale(height, width), readable

    endpoints = {
        "serving_default": (_also_of_nothing(from_bytes), tf.TensorSpec([None], tf.string, name="image_bytes")),
        "images": (_also_of_nothing(from_images), tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")),
    }
    pixels = tf.zeros([32, 32, 3], tf.uint8)
    picture = tf.io.encode_jpeg(pixels)
    warm_up = [("serving_default", {"image_bytes": tf.stack([picture] * size)}) for size in BATCH_SIZES]
    warm_up.append(("images", {"images": pixels[None]}))
    return _write(detector, endpoints, folder, version, warm_up)


def export_raw(detector, folder, version=1):
    """Write `folder/version/`, a SavedModel of the network alone, for runtimes that know neither strings nor NMS.

    Its only signature, serving_default, takes `images` float32 [B, h, w, 3], RGB 0..255, as the detector is fed them
    (resized by `detector.resizer`); it gives the raw outputs, which `detector.decoder` turns into detections. Raises
    and returns as `export`; a TfdetError also where there are no raw outputs (MTCNN).
    """
    if detector.decoder is None:
        raise TfdetError(f"{detector.name} has no raw outputs: its networks look at what the one before them found")

    def outputs(images):
        return detector(images, training=False)

    # h and w are fixed if the resizer makes one size of all.
    resized = tf.function(detector.resizer).get_concrete_function(tf.TensorSpec([None, None, 3], tf.uint8))
    spec = tf.TensorSpec([None, *resized.output_shapes], tf.float32, name="images")
    return _write(detector, {"serving_default": (outputs, spec)}, folder, version)


def decode_if_possible(encoded):
    """As `decode`, but bytes that cannot be decoded are no error -> (uint8 [H, W, 3], whether it is the image).

    A graph can catch an error in tf.data only: the first element of a data set that has the image, or nothing, in front
    of a stand-in. (Not by `reduce`, which optimizes the data set anew for each image and takes 0.1 s for it.)
    """

    @tf.autograph.experimental.do_not_convert
    def readable(encoded):
        return decode(encoded), True

    image = tf.data.Dataset.from_tensors(encoded).map(readable).ignore_errors()
    stand_in = tf.data.Dataset.from_tensors((tf.zeros([1, 1, 3], tf.uint8), False))
    return image.concatenate(stand_in).take(1).get_single_element()


def _only_where(readable, name, value):
    """Detections `value` [B, ...] of that name, and padding for the images that are not readable [B]."""
    padding = -1 if name in ("labels", "num_detections") else 0
    readable = tf.reshape(readable, [-1] + [1] * (value.shape.rank - 1))
    return tf.where(readable, value, tf.cast(padding, value.dtype))


def _write(detector, endpoints, folder, version, warm_up=()):
    """{signature: (function, TensorSpec of its input)} -> the version's folder.

    It appears under its number only when it is complete, as TF Serving looks for new versions all the time.
    """
    require_tensorflow("export")
    target = Path(folder) / str(version)
    if target.exists():
        raise FileExistsError(f"{target}: this version exists already")
    archive = keras.export.ExportArchive()
    archive.track(detector)
    for name, (function, spec) in endpoints.items():
        archive.add_endpoint(name, function, [spec])
    unfinished = target.with_name(f".{version}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was cut off
    archive.write_out(str(unfinished), verbose=False)
    extra = unfinished / "assets.extra"
    extra.mkdir()
    if warm_up:
        with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as file:
            for signature, inputs in warm_up:
                file.write(_prediction_log(signature, inputs))
    for file, names in (("class_names.txt", detector.class_names), ("keypoint_names.txt", detector.keypoint_names)):
        if names:
            (extra / file).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def _also_of_nothing(function):
    """The function {name: [B, ...]} of a batch, for B = 0 too, where TensorFlow's convolutions on the CPU fail."""

    def run(batch):
        count, *shape = tf.unstack(tf.shape(batch))
        stand_in = tf.zeros([tf.cast(count == 0, tf.int32), *shape], batch.dtype)
        return {name: value[:count] for name, value in function(tf.concat([batch, stand_in], axis=0)).items()}

    return run


def _prediction_log(signature, inputs):
    """A request, {input: tensor}, as a serialized PredictionLog (tensorflow_serving/apis/prediction_log.proto).

    By hand, so that every export has its warm-up, and not only where tensorflow-serving-api is installed.
    """
    request = _field(1, _field(3, signature.encode()))  # PredictRequest.model_spec.signature_name
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value.numpy()).SerializeToString()
        request += _field(2, _field(1, name.encode()) + _field(2, tensor))  # PredictRequest.inputs[name]
    return _field(6, _field(1, request))  # PredictionLog.predict_log.request


def _field(number, content):
    """A field of a protobuf message: tag, length as a varint, content."""
    rest, length = len(content), []
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2, *length, rest]) + content
