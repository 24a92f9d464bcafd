"""Files as joblib.dump(arrays, "x.lz4") writes them, made here without joblib and without LZ4."""

import io
import pickle
import sys
import types

import numpy as np
import pytest

from tfdet.errors import WeightsError
from tfdet.joblib_pickle import MAGIC, decompressed
from tfdet.weights import read_state_dict


class NumpyArrayWrapper:
    """What joblib pickles in the place of an array, whose bytes it writes behind it."""

    __module__ = "joblib.numpy_pickle"

    def __init__(self, array):
        self.subclass, self.shape, self.dtype = np.ndarray, array.shape, array.dtype
        self.order = "C" if array.flags.c_contiguous else "F"
        self.allow_mmap, self.numpy_array_alignment_bytes = False, 16


class Pickler(pickle._Pickler):
    def __init__(self, file):
        super().__init__(file, protocol=4)
        self.file = file

    def save(self, thing, *args, **kwargs):
        if not isinstance(thing, np.ndarray):
            return super().save(thing, *args, **kwargs)
        super().save(NumpyArrayWrapper(thing))
        self.framer.commit_frame(force=True)
        padding = 16 - (self.file.tell() + 1) % 16
        self.file.write(bytes([padding]) + b"\xff" * padding + thing.tobytes("A"))


def dumped(thing):
    file = io.BytesIO()
    module = types.ModuleType("joblib.numpy_pickle")
    module.NumpyArrayWrapper = NumpyArrayWrapper
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "joblib", types.ModuleType("joblib"))
        patch.setitem(sys.modules, "joblib.numpy_pickle", module)
        Pickler(file).dump(thing)
    return file.getvalue()


def literal(data):
    """A block that is nothing but new bytes."""
    length = len(data) - 15
    head = bytes([0xF0, *[255] * (length // 255), length % 255]) if length >= 0 else bytes([len(data) << 4])
    return head + data


def frame(*blocks, flags=0x40, header=b""):
    """Blocks, (bytes, whether they are stored as they are), as an LZ4 frame."""
    sizes = [(len(block) | stored << 31).to_bytes(4, "little") for block, stored in blocks]
    checksum = b"sum." if flags & 16 else b""
    body = b"".join(size + block + checksum for size, (block, _) in zip(sizes, blocks, strict=True))
    return MAGIC + bytes([flags, 0x40]) + header + b"\0" + body + bytes(4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame(), b""),
        (frame((literal(b"abc"), False)), b"abc"),
        (frame((literal(b"x" * 600), False)), b"x" * 600),
        (frame((b"as it is", True)), b"as it is"),
        # 3 new bytes, then 6 + 4 that begin 3 bytes back and overlap themselves, then 1 new one.
        (frame((b"\x36abc\x03\x00\x10z", False)), b"abcabcabcabcaz"),
        # 1 new byte, then 15 + 255 + 2 + 4 copies of it, then nothing new.
        (frame((b"\x1fa\x01\x00\xff\x02\x00", False)), b"a" * 277),
        # The second block copies from the first.
        (frame((literal(b"hello "), False), (b"\x02\x06\x00\x10!", False)), b"hello hello !"),
        (frame((literal(b"abc"), False), flags=0x50), b"abc"),  # a checksum behind each block
        (frame((literal(b"abc"), False), flags=0x49, header=bytes(12)), b"abc"),  # size and dictionary in front
    ],
)
def test_lz4(data, expected):
    assert decompressed(data) == expected


ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.array([1.5, -2.0], ">f4"),
    np.zeros((0, 3), np.float32),
]


def test_arrays_come_back(tmp_path):
    data = dumped(ARRAYS)
    path = tmp_path / "weights.lz4"
    path.write_bytes(frame((literal(data[:100]), False), (literal(data[100:]), False)))
    read = read_state_dict(path)
    assert list(read) == ["0", "1", "2", "3"]
    for array, expected in zip(read.values(), ARRAYS, strict=True):
        assert array.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(array, expected)
    again = read_state_dict(path.read_bytes(), "in memory")
    np.testing.assert_array_equal(again["0"], ARRAYS[0])


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame((literal(dumped([Evil()])), False)), "refused to unpickle builtins.exec"),
        (frame((literal(dumped({"a": ARRAYS[0]})), False)), "does not hold a list of arrays"),
        (frame((literal(dumped([np.array([None])])), False)), "array of dtype O8"),
        (frame((literal(dumped(ARRAYS)[:-40]), False)), "truncated, or not a checkpoint"),
        (frame((literal(dumped(ARRAYS)), False))[:50], "truncated, or not a checkpoint"),
        (frame((b"\x36abc\x09\x00\x10z", False)), "copy of what is not there"),
        (frame((b"\x36abc\x00\x00\x10z", False)), "copy of what is not there"),
        (frame((b"\x36ab", False)), "truncated"),
        (MAGIC, "truncated, or not a checkpoint"),
        (MAGIC + bytes(20), "not an LZ4 frame"),
    ],
)
def test_a_broken_or_wicked_file_is_one_line(tmp_path, data, words):
    path = tmp_path / "weights.lz4"
    path.write_bytes(data)
    with pytest.raises(WeightsError) as error:
        read_state_dict(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)
