"""SavedModel export for TensorFlow Serving: from encoded images to detections in their pixels, all in the graph."""

import os
import shutil
from pathlib import Path

import keras
import tensorflow as tf

from tfdet.data.pipeline import decode


def export(detector, folder, version=1):
    """Write `folder/version/`, which TF Serving loads as it is.

    Signatures, both with detections as the output (see Detector), in pixels of the original images:
        serving_default: `image_bytes` string [B], encoded JPEG or PNG of any sizes (REST: {"b64": ...});
        images: `images` uint8 [B, H, W, 3], RGB.
    The names of the classes are in `assets.extra/class_names.txt`, one a line, the first is label 0.

    The folder appears under its number only when it is complete, as TF Serving looks for new versions all the time.

    Raises:
        FileExistsError: there is such a version.
    Returns:
        Path of the version's folder.
    """
    target = Path(folder) / str(version)
    if target.exists():
        raise FileExistsError(f"{target}: this version exists already")

    def from_images(images):
        return detector.predict_step(images)

    def from_bytes(image_bytes):
        # Sizes differ, so each image is decoded and resized by itself; the network sees one batch.
        images, scale = tf.map_fn(prepare, image_bytes, fn_output_signature=(tf.float32, tf.float32))
        return detector.detect(images, scale)

    def prepare(encoded):
        image = decode(encoded)
        height, width, _ = tf.unstack(tf.shape(image))
        return detector.resizer(image), detector.resizer.scale(height, width)

    archive = keras.export.ExportArchive()
    archive.track(detector)
    archive.add_endpoint("serving_default", from_bytes, [tf.TensorSpec([None], tf.string, name="image_bytes")])
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    archive.add_endpoint("images", from_images, [images])
    unfinished = target.with_name(f".{version}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was cut off
    archive.write_out(str(unfinished), verbose=False)
    extra = unfinished / "assets.extra"
    extra.mkdir()
    (extra / "class_names.txt").write_text("".join(f"{name}\n" for name in detector.class_names), encoding="utf-8")
    os.replace(unfinished, target)
    return target
