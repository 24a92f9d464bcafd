"""What a run of `convert` before this one has left, and whether it was of the same data set.

Shards are made in FOLDER/.unfinished-SPLIT. Beside each lies SHARD.npz (see `index`), which says what is in it and is
written last, so that a shard that has one is complete.
"""

import contextlib
import hashlib
import os

from tfdet.data import index, manifest
from tfdet.data.records import Record
from tfdet.errors import DataError, TfdetError


def fingerprint(dataset, split, count):
    """A hash of all that is to be written; of an image file not the content, but its name and size."""
    facts = (manifest.VERSION, split, count, dataset.name, dataset.class_names, dataset.category_ids, dataset.skipped)
    digest = hashlib.sha256(repr(facts).encode())
    for example in dataset.examples:
        match example.image:
            case bytes():
                image = hashlib.sha256(example.image).digest()
            case Record(path, number, offset):
                image = os.path.basename(path), number, offset
            case path:
                image = os.path.basename(path), os.path.getsize(path) if os.path.isfile(path) else None
        about = example.image_id, image, example.height, example.width, len(example.boxes)
        digest.update(repr(about).encode())
        for array in (example.boxes, example.labels, example.crowd, example.difficult, example.areas):
            digest.update(array.tobytes())
    return digest.hexdigest()


def is_finished(folder, split, fingerprint):
    """Is all of this very split there?"""
    try:
        found = manifest.read(manifest.paths(folder, split)[0])
        sizes = [os.path.getsize(os.path.join(folder, shard.file)) for shard in found.shards]
    except (DataError, OSError):
        return False
    return found.fingerprint == fingerprint and sizes == [shard.bytes for shard in found.shards]


def complete(unfinished, paths, fingerprint):
    """The set of those shards that a run before this one has completed; the rest of what it left is removed."""
    notes = {}
    for file in unfinished.glob("*.tfrecord.npz"):
        with contextlib.suppress(DataError):  # cut off by a crash of the machine
            _, notes[file.stem] = index.read(file)
    if any(note["fingerprint"] != fingerprint for note in notes.values()):
        raise TfdetError(
            f"{unfinished}: holds unfinished shards of something else (another data set, or other annotations, other "
            "things left out, or another number of shards); remove it to start afresh, or choose another folder"
        )
    done = set()
    for path in paths:
        places = (unfinished / path.name, path)  # those that have moved already, too
        sizes = [place.stat().st_size for place in places if place.is_file()]
        if path.name in notes and sizes == [notes[path.name]["bytes"]]:
            done.add(path)
    for file in unfinished.glob("*"):
        if file.name.removesuffix(".npz") not in {path.name for path in done}:
            file.unlink()
    return done
