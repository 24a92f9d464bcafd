"""Any data set as TFRecord shards with the TensorFlow Object Detection API's feature names; `tfrecord` reads them.

They are made in FOLDER/.unfinished-SPLIT, where a run that was cut off goes on (see `resume`); when all are complete
and on the disk, they move out of it.
"""

import dataclasses
import glob
import hashlib
import multiprocessing
import os
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfdet.data import columns, index, manifest, resume, tfrecord
from tfdet.data.images import load_image
from tfdet.data.label_map import label_map_text, read_label_map
from tfdet.data.manifest import Manifest, Shard
from tfdet.data.records import encoded
from tfdet.data.tfrecord import AREA, CORNERS, CROWD, DIFFICULT, FEATURES, LABEL, TEXT
from tfdet.data.validation import Problems
from tfdet.errors import DataError, TfdetError

PER_SHARD = 1000  # images; of photographs 100 to 200 MB, as TensorFlow's guide to performance advises
PER_PROCESS = 10_000  # images that are written in the seconds which it takes to start a process
LISTS = {tf.string: "bytes_list", tf.int64: "int64_list", tf.float32: "float_list"}


def write_shards(
    dataset,
    folder,
    split,
    shards=None,
    workers=None,
    on_error="raise",
    advance=lambda images: None,
    tell=lambda line: None,
):
    """Writes a `Dataset` as folder/SPLIT-00000-of-00010.tfrecord, ..., with its manifest, index and label_map.pbtxt.

    Images are copied as they are; those that the API does not know (BMP, GIF) become PNG. Labels are the data set's
    `category_ids`. The order is kept: a shard holds neighbours. The same data set gives the same bytes, whatever the
    number of workers, and in however many runs: what a run that was cut off has completed is not written again. No
    shard has its name before all are complete and on the disk.

    Args:
        folder: made if it is not there.
        shards: how many; one for every 1000 images if not given.
        workers: processes, each writing one shard at a time; 1 is this process. One a core if not given, but not more
            than one for every 10,000 images, since each takes seconds to start. (They import the main module, so a
            script must do its work beneath `if __name__ == "__main__"`.)
        on_error: "skip" leaves an image out that turns out broken only now, and says so in the manifest.
        advance: called with the number of images of each shard that is complete.
        tell: called with a line where there is something of an earlier run.

    Returns:
        The paths of the shards.

    Raises:
        TfdetError: the folder has shards of that split already (other than of the very same data set), or unfinished
            ones of something else, or a label map of other classes; or cannot be written.
        DataError: an image cannot be read.
    """
    folder = Path(folder)
    count = shards or max(1, -(-len(dataset) // PER_SHARD))
    paths = [folder / f"{split}-{number:05d}-of-{count:05d}.tfrecord" for number in range(count)]
    bounds = [len(dataset) * number // count for number in range(count + 1)]
    unfinished = folder / f".unfinished-{split}"
    try:
        fingerprint = resume.fingerprint(dataset, split, count)
        if resume.is_finished(folder, split, fingerprint):
            tell("all shards are there already")
            advance(len(dataset))
        else:
            done = resume.complete(unfinished, paths, fingerprint)
            _check_free(folder, split, done)
            _write_label_map(dataset, folder / "label_map.pbtxt")
            unfinished.mkdir(exist_ok=True)
            if done:
                tell(f"goes on where it stopped: {len(done)} of {count} shards are complete")
            jobs = []
            for path, start, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
                if path in done:
                    advance(end - start)
                else:
                    part = dataclasses.replace(dataset, examples=dataset.examples[start:end], skipped=())
                    jobs.append((part, unfinished / path.name, fingerprint, on_error))
            _write_all(jobs, workers or min(os.cpu_count(), -(-len(dataset) // PER_PROCESS)), advance)
            _publish(dataset, folder, split, paths, fingerprint)
        shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise TfdetError(f"{folder}: split {split} cannot be written: {error}") from error
    except BrokenProcessPool as error:
        died = "a process that was writing has died (killed, or out of memory?)"
        raise TfdetError(f"{folder}: split {split}: {died}; the same command goes on where it stopped") from error
    return paths


# Before and after


def _check_free(folder, split, done):
    digits = "[0-9]" * 5
    existing = sorted(set(folder.glob(f"{glob.escape(split)}-{digits}-of-{digits}.tfrecord")) - done)
    if existing:
        raise TfdetError(f"{existing[0]}: shards of split {split} are there already; remove them first")


def _write_label_map(dataset, path):
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    if path.exists():
        if list(read_label_map(path).items()) != list(names.items()):
            raise TfdetError(f"{path}: is of other classes than {dataset.name}; choose another folder")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{path.name}")
    unfinished.write_text(label_map_text(names), encoding="utf-8")
    os.replace(unfinished, path)


# Writing


def _write_all(jobs, workers, advance):
    """Calls `_write_shard` for each of the jobs, in this process or in as many others as there are workers."""
    if min(workers, len(jobs)) <= 1:
        for job in jobs:
            _write_shard(*job)
            advance(len(job[0]))
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, _prepare_process)
    try:
        running = {pool.submit(_write_shard, *job): len(job[0]) for job in jobs}
        for future in as_completed(running):
            future.result()
            advance(running[future])
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_process():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person stops the process that waits for this one
    tf.config.set_visible_devices([], "GPU")  # it would take all of the memory

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_shard(dataset, path, fingerprint, on_error):
    """Writes a shard, and beside it PATH.npz: the note that it is complete, and what manifest and index say of it."""
    problems = Problems(on_error)
    rows, size = [], 0
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for example in dataset.examples:
                try:
                    features = _example_record(example, dataset)
                except DataError as error:
                    problems.report(str(error))
                    continue
                row = tfrecord.row(_name(example), features, problems)
                if row is not None:
                    record = _serialised(features)
                    writer.write(record)
                    rows.append(row | {"number": len(rows), "offset": size})
                    size += len(record) + tfrecord.AROUND
    except tf.errors.OpError as error:
        raise OSError(error.message) from error
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
        if os.fstat(file.fileno()).st_size != size:
            raise OSError(f"{partial.name} has not the {size} bytes that were written")
    note = {"file": path.name, "images": len(rows), "bytes": size, "sha256": manifest.sha256(partial)}
    note |= {"fingerprint": fingerprint, "skipped": problems.lines}
    os.replace(partial, path)
    index.write(f"{path}.npz", columns.of_shard(path.name, rows), note)


def _publish(dataset, folder, split, paths, fingerprint):
    """All shards are complete: writes manifest and index, and gives everything its name, the manifest last."""
    unfinished = folder / f".unfinished-{split}"
    parts, notes = zip(*(index.read(unfinished / f"{path.name}.npz") for path in paths), strict=True)
    joined = columns.join(parts)
    manifest_file, index_file = map(Path, manifest.paths(folder, split))
    index.write(unfinished / index_file.name, joined)
    content = Manifest(
        version=manifest.VERSION,
        source=dataset.name,
        fingerprint=fingerprint,
        images=len(joined.counts),
        boxes=len(joined.kind),
        classes=dict(zip(dataset.class_names, dataset.category_ids, strict=True)),
        skipped=[*dataset.skipped, *(line for note in notes for line in note["skipped"])],
        index_sha256=manifest.sha256(unfinished / index_file.name),
        shards=[Shard(*(note[field.name] for field in dataclasses.fields(Shard))) for note in notes],
    )
    manifest.write(unfinished / manifest_file.name, content)
    manifest_file.unlink(missing_ok=True)
    os.replace(unfinished / index_file.name, index_file)
    for path in paths:
        if (unfinished / path.name).exists():
            os.replace(unfinished / path.name, path)
    os.replace(unfinished / manifest_file.name, manifest_file)


# A record


def _example_record(example, dataset):
    """An `Example` as the features of a record, {name: value or values}."""
    try:
        image = encoded(example.image)
        if not image.startswith((b"\xff\xd8", b"\x89PNG")):
            image = tf.io.encode_png(load_image(image)).numpy()
    except (OSError, tf.errors.OpError) as error:
        raise DataError(f"{_name(example)}: not an image that can be read: {type(error).__name__}") from error
    name = os.path.basename(example.image) if isinstance(example.image, str) else str(example.image_id)
    fractions = example.boxes.astype(np.float64) / np.tile([example.width, example.height], 2)
    return {
        "image/encoded": image,
        "image/format": b"jpeg" if image.startswith(b"\xff\xd8") else b"png",
        "image/key/sha256": hashlib.sha256(image).hexdigest().encode(),
        "image/filename": _bytes(name),
        "image/source_id": _bytes(str(example.image_id)),
        "image/height": example.height,
        "image/width": example.width,
        **{corner: fractions[:, i].astype(np.float32) for i, corner in enumerate(CORNERS)},
        TEXT: [_bytes(dataset.class_names[label]) for label in example.labels],
        LABEL: np.array(dataset.category_ids, np.int64)[example.labels],
        DIFFICULT: example.difficult.astype(np.int64),
        CROWD: example.crowd.astype(np.int64),
        AREA: example.areas,
    }


def _serialised(features):
    """The features as a serialised tf.train.Example, always the same bytes."""
    record = tf.train.Example()
    for name, values in features.items():
        kind = FEATURES[name].dtype if name in FEATURES else tf.string
        values = values.tolist() if isinstance(values, np.ndarray) else values
        values = values if isinstance(values, list) else [values]
        getattr(record.features.feature[name], LISTS[kind]).value.extend(values)
    return record.SerializeToString(deterministic=True)


def _name(example):
    return example.image_id if isinstance(example.image, bytes) else example.image


def _bytes(text):
    return text.encode("utf-8", "backslashreplace")
