"""Which files are the shards of a split, and which is their label map? Their names say so."""

import fnmatch
import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tfdet.errors import DataError

NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})")
BESIDE = (".manifest.json", ".index.npz")  # what `manifest` keeps beside the shards of a split, after its name
THREADS = 32  # that ask for files at once


def split_names(where):
    """The splits that `tfrecord.read_tfrecord` can read: what {split} stands for, or the first word of train, val, test
    or the like in the name of a shard, or else the name.

    Raises:
        DataError: there are no shards.
    """
    where = os.path.expanduser(where)
    files = _files(where.replace("{split}", "*"))
    if "{split}" in where:
        pattern = fnmatch.translate(where.replace("{split}", "SPLIT"))
        pattern = pattern.replace("SPLIT", "(?P<split>[^/]+?)", 1).replace("SPLIT", "(?P=split)")
        found = [match["split"] for file in files if (match := re.match(pattern, file))]
    else:
        found = []
        for file in files:
            stem = NUMBERED.sub("", re.sub(r"\.(tf)?records?", "", os.path.basename(file)))
            words = [word for word in re.split(r"[\W_]+", stem) if re.match("train|val|test|dev", word)]
            found.append(words[0] if words else stem)
    if not found:
        raise DataError(f"{where}: there are no such shards; expected a folder of *record* files, or a glob")
    return tuple(dict.fromkeys(found))


def find_shards(where, split):
    """The paths of the shards of a split, sorted; see `tfrecord.read_tfrecord`.

    Raises:
        DataError: there are none, or not all of them.
    """
    if "{split}" in where:
        shards = _files(where.replace("{split}", glob.escape(split)))
    else:
        word = re.compile(rf"(?<![^\W_]){re.escape(split)}(?:\d{{4}})?(?![^\W_])")
        shards = [file for file in _files(where) if split and word.search(os.path.basename(file))]
    if not shards:
        raise DataError(f'{where}: no shards of split "{split}"; there are {", ".join(split_names(where))}')
    _check_complete(where, shards)
    return shards


def _check_complete(where, shards):
    """Raises DataError unless all of the -of-00010 shards are there. (A glob may choose some of them.)"""
    totals, chosen = {}, set(shards)
    for shard in shards:
        folder, name = os.path.split(shard)
        if match := NUMBERED.search(name):
            around = os.path.join(folder, name[: match.start()]), name[match.end() :]
            total = totals.setdefault(around, match[2])
            if total != match[2]:
                raise DataError(f"{where}: shards of two sets, -of-{total} and -of-{match[2]}, lie side by side")
    for (head, tail), total in totals.items():
        for number in range(int(total)):
            shard = f"{head}-{number:05d}-of-{total}{tail}"
            if shard not in chosen and not os.path.exists(shard):
                raise DataError(f"{shard}: this shard is missing")


def _files(where):
    path = os.path.expanduser(where)
    found = glob.glob(os.path.join(glob.escape(path), "*record*") if os.path.isdir(path) else path, recursive=True)
    found = sorted(file for file in found if not file.endswith(BESIDE))
    return [file for file, there in zip(found, asked(os.path.isfile, found), strict=True) if there]


def asked(question, files):
    """[question(file)] of many files, several at a time: on a network each answer takes milliseconds."""
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda first: list(map(question, files[first::THREADS])), range(THREADS)))
    return [answers[i % THREADS][i // THREADS] for i in range(len(files))]


def find_label_map(shards):
    """The label map beside the shards; None if there is none.

    Raises:
        DataError: there are several.
    """
    folder = Path(shards[0]).parent
    found = sorted(folder.glob("[!.]*.pbtxt"))
    usual = [file for file in found if file.name == "label_map.pbtxt"]
    if len(found) > 1 and not usual:
        listed = ", ".join(file.name for file in found)
        raise DataError(f"{folder}: which is the label map? Name it label_map.pbtxt: {listed}")
    return (usual or found or [None])[0]
