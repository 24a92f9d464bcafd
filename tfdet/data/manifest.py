"""What `convert` leaves beside the shards of a split, so that reading them starts in seconds.

SPLIT.manifest.json lists the shards with their checksums, and everything that was left out. SPLIT.index.npz holds the
annotations (see `index`); the manifest has its checksum, too.
"""

import dataclasses
import hashlib
import json
import os
import typing

from tfdet.data import columns, index
from tfdet.data.shards import BESIDE, NUMBERED, asked
from tfdet.errors import DataError

VERSION = 1  # of both files


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file: its name, how many images it holds, its size in bytes, and its SHA-256 as hexadecimal digits."""

    file: str
    images: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of SPLIT.manifest.json.

    Attributes:
        version: `VERSION`.
        source: `Dataset.name` of what was written.
        fingerprint: of all that was written; see `convert`.
        images, boxes: how many.
        classes: {name: label in the shards}.
        skipped: one line for everything that was left out.
        index_sha256: of SPLIT.index.npz.
        shards: all of them, in order.
    """

    version: int
    source: str
    fingerprint: str
    images: int
    boxes: int
    classes: dict[str, int]
    skipped: list[str]
    index_sha256: str
    shards: list[Shard]


def paths(folder, split):
    """The paths of manifest and index."""
    return tuple(os.path.join(folder, f"{split}{suffix}") for suffix in BESIDE)


def write(file, manifest):
    """Writes one, always the same bytes, and waits until they are on the disk."""
    with open(file, "w", encoding="utf-8") as out:
        out.write(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
        out.flush()
        os.fsync(out.fileno())


def read(file):
    """The `Manifest` in a file.

    Raises:
        DataError: it cannot be read, or is no such file.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            content = json.load(opened)
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']}, not {VERSION}")
        shards = [Shard(**shard) for shard in content.pop("shards")]
        manifest = Manifest(**content, shards=shards)
        for part in (manifest, *shards):
            for field in dataclasses.fields(part):
                if not isinstance(getattr(part, field.name), typing.get_origin(field.type) or field.type):
                    raise TypeError(f"{field.name} is of the wrong type")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{file}: cannot be used ({reason}); remove it to read the shards themselves") from error
    return manifest


def indexed(shards):
    """{shard: its `Columns`} of those shards that have both manifest and index; they are not opened.

    Raises:
        DataError: a shard has not the size that its manifest says, or manifest or index are damaged.
    """
    found = {}
    for (folder, split), group in _by_split(shards).items():
        file, index_file = paths(folder, split)
        if os.path.isfile(file) and os.path.isfile(index_file):
            manifest = read(file)
            if of_wrong_size := _of_wrong_size(file, manifest, group):
                raise DataError(of_wrong_size.popitem()[1])
            parts = columns.of_each_shard(_read_index(index_file, manifest))
            found |= {shard: parts[os.path.basename(shard)]._replace(shards=[shard]) for shard in group}
    return found


def faults(shards):
    """A line for each of the shards that is not the very one that its manifest lists; reads them all.

    Raises:
        DataError: a manifest is damaged. OSError: a shard cannot be read.
    """
    lines = []
    for (folder, split), group in _by_split(shards).items():
        file, _ = paths(folder, split)
        if os.path.isfile(file):
            manifest = read(file)
            of_wrong_size = _of_wrong_size(file, manifest, group)
            lines += of_wrong_size.values()
            group = [shard for shard in group if shard not in of_wrong_size]
            expected = {shard.file: shard.sha256 for shard in manifest.shards}
            for shard, found in zip(group, asked(sha256, group), strict=True):
                if found != expected[os.path.basename(shard)]:
                    lines.append(f"{shard}: has changed since it was written: its SHA-256 is not that in {file}")
    return lines


def sha256(file):
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _by_split(shards):
    """{(folder, split as `convert` called it): shards}."""
    groups = {}
    for shard in shards:
        folder, name = os.path.split(shard)
        if match := NUMBERED.search(name):
            groups.setdefault((folder, name[: match.start()]), []).append(shard)
    return groups


def _of_wrong_size(file, manifest, shards):
    """{shard: line} of the shards that have not the size that the manifest says."""
    expected = {shard.file: shard.bytes for shard in manifest.shards}
    lines = {}
    for shard, size in zip(shards, asked(os.path.getsize, shards), strict=True):
        listed = expected.get(os.path.basename(shard))
        if size != listed:
            says = "does not list it" if listed is None else f"says {listed}"
            lines[shard] = f"{shard}: has {size} bytes, {file} {says}; remove the latter to read the shards themselves"
    return lines


def _read_index(file, manifest):
    """The `Columns` in an index.

    Raises:
        DataError: it is not the very file that the manifest was written for.
    """
    try:
        if sha256(file) != manifest.index_sha256:
            raise DataError(f"{file}: is damaged: its SHA-256 is not that in the manifest")
        found, _ = index.read(file)
        listed = [(shard.file, shard.images) for shard in manifest.shards]
        if list(zip(found.shards, found.images.tolist(), strict=True)) != listed:
            raise DataError(f"{file}: the manifest lists other shards, or other numbers of images in them")
    except (DataError, OSError) as error:
        raise DataError(f"{error}; remove it to read the shards themselves") from error
    return found
