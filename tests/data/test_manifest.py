import hashlib
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from tfdet import checking
from tfdet.data import columns, index, load_dataset, manifest, split_names, tfrecord
from tfdet.data.convert import write_shards
from tfdet.errors import DataError

RED, BLUE = (40, 60, [(5, 5, 30, 30)], [0]), (50, 30, [(1, 2, 20, 40), (3, 3, 9, 9)], [1, 0])


@pytest.fixture(scope="module")
def finished(make_dataset, tmp_path_factory):
    """A folder with the shards of "train" and "val"; of an image of train all is said to be difficult and a crowd."""
    folder = tmp_path_factory.mktemp("finished")
    dataset = make_dataset(RED, BLUE, (20, 20, [], []), BLUE, RED)
    vars(dataset.examples[1])["difficult"][:] = True
    vars(dataset.examples[3])["crowd"][1:] = True
    vars(dataset.examples[3])["areas"][0] = 12.5
    vars(dataset)["skipped"] = ("boxes.csv: ä box", "boxes.csv: another")
    write_shards(dataset, folder, "train", shards=3)
    write_shards(make_dataset((60, 70, *BLUE[2:]), (80, 90, *RED[2:])), folder, "val", shards=2)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "set")


def assert_identical(dataset, expected):
    """All fields are the same, arrays to the bit, and of the same type."""
    names = ("name", "class_names", "category_ids", "skipped", "keypoint_names")
    assert [getattr(dataset, name) for name in names] == [getattr(expected, name) for name in names]
    assert len(dataset) == len(expected)
    for one, other in zip(dataset.examples, expected.examples, strict=True):
        for name, value in vars(other).items():
            found = getattr(one, name)
            assert type(found) is type(value), name
            if isinstance(value, np.ndarray):
                assert (found.dtype, found.shape, found.tobytes()) == (value.dtype, value.shape, value.tobytes()), name
            else:
                assert found == value and repr(found) == repr(value), name


def read_both_ways(where, split, on_error="raise"):
    """What the index gives and what reading through gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "_read_shard", None)
        by_index = load_dataset(f"tfrecord:{where}", split, on_error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "indexed", lambda shards: {})
        return by_index, load_dataset(f"tfrecord:{where}", split, on_error)


@pytest.mark.parametrize(
    ("where", "split", "count"),
    [
        ("", "train", 5),
        ("", "val", 2),
        ("/*", "train", 5),
        ("/train*", "train", 5),
        ("/train-0000[02]-*", "train", 3),
        ("/train-00001-of-00003.tfrecord", "train", 2),
        ("/{split}-*.tfrecord", "val", 2),
        ("/{split}*", "train", 5),
        ("//*.tfrecord", "train", 5),
    ],
)
def test_the_index_gives_what_reading_through_gives(finished, where, split, count):
    dataset, expected = read_both_ways(f"{finished}{where}", split)
    assert len(dataset) == count
    assert_identical(dataset, expected)


@pytest.mark.parametrize("where", ["", "/[tv]*", "/*-of-*", "/{split}-*"])
def test_neither_manifest_nor_index_is_taken_for_a_shard(finished, where):
    assert split_names(f"tfrecord:{finished}{where}") == ("train", "val")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("with_label_map", [True, False])
def test_so_it_does_of_coco(shared_data, tmp_path, split, with_label_map):
    write_shards(load_dataset(f"coco:{shared_data / 'tiny_coco'}", split), tmp_path, split, shards=4)
    if not with_label_map:
        (tmp_path / "label_map.pbtxt").unlink()
    assert_identical(*read_both_ways(tmp_path, split))
    dataset, expected = read_both_ways(tmp_path / f"{split}-00002-*", split)
    assert_identical(dataset, expected)
    assert (len(dataset.class_names) == 80) == with_label_map
    assert isinstance(dataset.examples[0].image_id, int)


@pytest.mark.parametrize("ids", [("007", "8"), (7, 7), ("", ""), ("a\nb", "ä\x00\udc80")])
def test_ids_of_every_kind(make_dataset, tmp_path, ids):
    dataset = make_dataset(RED, BLUE)
    for example, image_id in zip(dataset.examples, ids, strict=True):
        vars(example)["image_id"] = image_id
    write_shards(dataset, tmp_path, "train", shards=2)
    assert_identical(*read_both_ways(tmp_path, "train"))


def test_a_label_map_that_was_edited_counts(folder):
    (folder / "label_map.pbtxt").write_text("item { id: 2 name: 'navy' }")
    with pytest.raises(DataError, match=r"train-00000-of-00003.tfrecord: record 0: .* label 1 is not in"):
        load_dataset(f"tfrecord:{folder}")
    dataset, expected = read_both_ways(folder, "train", "skip")
    assert_identical(dataset, expected)
    assert dataset.class_names == ("navy",)
    assert len(dataset.skipped) == 4


@pytest.mark.parametrize("block", [1, 2, 2**16])
def test_a_box_that_is_refused_is_named_in_the_same_words(make_dataset, tmp_path, monkeypatch, block):
    monkeypatch.setattr(columns, "BLOCK", block)
    dataset = make_dataset(RED, BLUE, BLUE)
    dataset.examples[1].boxes[1] = (0, 0, 1.25, 1.25)
    dataset.examples[2].boxes[:] = (-20, 3, 9, 9), (3, 3, 9, np.nan)
    write_shards(dataset, tmp_path, "train", shards=2)
    by_index, expected = read_both_ways(tmp_path, "train", "skip")
    assert_identical(by_index, expected)
    lines = [line.removeprefix(f"{tmp_path}/train-00001-of-00002.tfrecord: ") for line in by_index.skipped]
    assert [line.split(" (")[0] for line in lines] == [
        "record 0: image image 1: box 1",
        "record 1: image image 2: box 0",
        "record 1: image image 2: box 1",
    ]
    assert [example.boxes.tolist() for example in by_index.examples] == [
        [[5, 5, 30, 30]],
        [[1, 2, 20, 40]],
        [[0, 3, 9, 9]],
    ]


def test_sets_with_and_without_index_may_be_mixed(folder):
    expected = load_dataset(f"tfrecord:{folder / '*'}", "val")
    for path in list(folder.glob("train-*.tfrecord")):
        path.rename(path.with_name(f"old-val-{path.name[6:]}"))
    mixed = load_dataset(f"tfrecord:{folder / '*'}", "val")
    assert [example.image.path for example in mixed.examples[5:]] == [one.image.path for one in expected.examples]
    assert len(mixed) == 7


# --- the manifest ---


def test_the_manifest_lists_and_vouches_for_everything(finished):
    content = json.loads((finished / "train.manifest.json").read_text())
    assert content["source"] == "drawn"
    assert content["skipped"] == ["boxes.csv: ä box", "boxes.csv: another"]
    assert content["classes"] == {"red": 1, "blue": 2}
    assert (content["images"], content["boxes"]) == (5, 6)
    assert [shard["images"] for shard in content["shards"]] == [1, 2, 2]
    for shard in content["shards"]:
        bytes_in_it = (finished / shard["file"]).read_bytes()
        assert shard["bytes"] == len(bytes_in_it)
        assert shard["sha256"] == hashlib.sha256(bytes_in_it).hexdigest()
    assert content["index_sha256"] == hashlib.sha256((finished / "train.index.npz").read_bytes()).hexdigest()


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def with_value(path, key, value):
    content = json.loads(path.read_text())
    *parents, last = key
    place = content
    for parent in parents:
        place = place[parent]
    place[last] = value
    path.write_text(json.dumps(content))


INDEX, MANIFEST = "train.index.npz", "train.manifest.json"


@pytest.mark.parametrize(
    ("damaged", "damage", "words"),
    [
        (INDEX, lambda path: os.truncate(path, 0), "is damaged: its SHA-256"),
        (INDEX, lambda path: os.truncate(path, path.stat().st_size - 1), "is damaged: its SHA-256"),
        (INDEX, lambda path: flipped(path, 300), "is damaged: its SHA-256"),
        (INDEX, lambda path: shutil.copy(path.with_name("val.index.npz"), path), "is damaged: its SHA-256"),
        (MANIFEST, lambda path: os.truncate(path, 0), "cannot be used"),
        (MANIFEST, lambda path: os.truncate(path, path.stat().st_size - 3), "cannot be used"),
        (MANIFEST, lambda path: path.write_text("[]"), "cannot be used"),
        (MANIFEST, lambda path: path.write_text("[" * 10_000), "cannot be used"),
        (MANIFEST, lambda path: path.write_bytes(b"\xff"), "cannot be used"),
        (MANIFEST, lambda path: with_value(path, ["version"], 2), "its version is 2, not 1"),
        (MANIFEST, lambda path: with_value(path, ["more"], 2), "cannot be used"),
        (MANIFEST, lambda path: with_value(path, ["shards"], {}), "does not list it"),
        (MANIFEST, lambda path: with_value(path, ["shards", 0], None), "cannot be used"),
        (MANIFEST, lambda path: with_value(path, ["shards", 0, "bytes"], "9"), "bytes is of the wrong type"),
        (MANIFEST, lambda path: with_value(path, ["shards", 0, "images"], 2), "the manifest lists other shards"),
        (MANIFEST, lambda path: with_value(path, ["shards", 0, "file"], "x"), "does not list it"),
    ],
)
def test_damage_is_one_line_that_says_what_to_remove(folder, damaged, damage, words):
    spec, expected = f"tfrecord:{folder}", load_dataset(f"tfrecord:{folder}")
    damage(folder / damaged)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError) as error:
            load_dataset(spec, on_error=on_error)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
        assert str(error.value).endswith("to read the shards themselves")
    told = str(folder / (INDEX if "the manifest lists" in words else damaged))
    assert told in str(error.value)
    os.remove(told)
    assert_identical(load_dataset(spec), expected)
    assert len(load_dataset(spec, "val")) == 2


def test_a_shard_of_another_size_is_named(folder):
    shard = folder / "train-00001-of-00003.tfrecord"
    size = shard.stat().st_size
    os.truncate(shard, size - 7)
    with pytest.raises(DataError) as error:
        load_dataset(f"tfrecord:{folder}")
    for words in (f"{shard}: has {size - 7} bytes, ", f"says {size};", "train.manifest.json"):
        assert words in str(error.value)
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError, match="record 1: is cut off"):
        load_dataset(f"tfrecord:{folder}")


def test_an_index_that_does_not_fit_together_is_refused(folder):
    """Even if somebody gave it a checksum."""
    path = folder / INDEX
    sound = path.read_bytes()
    for name in ("counts", "kind", "labels", "offsets", "filenames_lengths", "fractions", "shards", "sizes", "note"):
        path.write_bytes(sound)
        with np.load(path) as arrays:
            changed = dict(arrays)
        if name == "labels":
            changed[name] = changed[name][1:]
        elif name == "fractions":
            changed[name] = changed[name].astype(np.float64)
        else:
            changed[name] = ~changed[name]
        np.savez(path, **changed)
        with_value(folder / MANIFEST, ["index_sha256"], manifest.sha256(path))
        with pytest.raises(DataError, match=r"train.index.npz: .*; remove it to read the shards themselves"):
            load_dataset(f"tfrecord:{folder}")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("counts.npy", b"x")
    with pytest.raises(DataError, match=r"train.index.npz: cannot be used"):
        index.read(path)


def test_checking_compares_the_checksums(folder):
    assert checking.check(f"tfrecord:{folder}").defects == []
    flipped(folder / "train-00001-of-00003.tfrecord", 3000)
    os.truncate(folder / "val-00001-of-00002.tfrecord", 1000)
    defects = checking.check(f"tfrecord:{folder}").defects
    changed = (
        f"{folder / 'train-00001-of-00003.tfrecord'}: has changed since it was written: its SHA-256 is not that in"
    )
    assert sum(line.startswith(changed) for line in defects) == 1
    assert sum("val-00001-of-00002.tfrecord: has 1000 bytes, " in line for line in defects) == 1
    (folder / MANIFEST).write_text("{}")
    (line,) = [line for line in checking.check(f"tfrecord:{folder}", ("train",)).defects if MANIFEST in line]
    assert "remove it" in line
