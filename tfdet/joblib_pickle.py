"""Reading a list of arrays that joblib has written, compressed with LZ4, without joblib and without running anything.

Such a file is an LZ4 frame (lz4/lz4, doc/lz4_Frame_format.md and lz4_Block_format.md) around a pickle, in which each
array is an object that tells its shape and dtype, followed by the array's bytes, which are no part of the pickle.
A pickle may name any Python function to be called: only the three names that a list of arrays needs are let through.
"""

import io
import math
import pickle

import numpy as np

from tfdet.errors import WeightsError

MAGIC = b"\x04\x22\x4d\x18"


def read_arrays(data, path):
    """The file's content, bytes -> list of arrays.

    Raises: WeightsError if the pickle asks for anything but arrays, other errors if the data is broken.
    """
    arrays = _Unpickler(io.BytesIO(decompressed(data)), path).load()
    if not isinstance(arrays, list) or not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError("it does not hold a list of arrays")
    return arrays


def decompressed(data):
    """An LZ4 frame -> bytes. Checksums are not looked at.

    Raises: ValueError, IndexError: the frame is truncated or broken.
    """
    if data[:4] != MAGIC or data[4] >> 6 != 1:
        raise ValueError("not an LZ4 frame")
    flags, place = data[4], 7 + (8 if data[4] & 8 else 0) + (4 if data[4] & 1 else 0)
    written = bytearray()
    while size := _number(data, place, 4):
        stored, size = size >> 31, size & 0x7FFFFFFF
        block = data[place + 4 : place + 4 + size]
        if len(block) < size:
            raise ValueError("truncated")
        if stored:
            written += block
        else:
            _decompress(block, written)
        place += 4 + size + (4 if flags & 16 else 0)
    return bytes(written)


def _decompress(block, written):
    """Adds what a block holds: again and again some new bytes, and a copy of some that are written already."""
    place = 0
    while True:
        token = block[place]
        length, place = _length(block, place + 1, token >> 4)
        if place + length > len(block):
            raise ValueError("truncated")
        written += block[place : place + length]
        place += length
        if place == len(block):  # the last copy is left out
            return
        offset = _number(block, place, 2)
        length, place = _length(block, place + 2, token & 15)
        start = len(written) - offset
        if offset == 0 or start < 0:
            raise ValueError("a copy of what is not there")
        repeated = written[start : start + length + 4]  # shorter, if the copy overlaps itself
        written += (repeated * -(-(length + 4) // len(repeated)))[: length + 4]


def _length(block, place, length):
    """The rest of a length that begins with four bits -> it, and the place behind it."""
    if length == 15:
        while block[place] == 255:
            length, place = length + 255, place + 1
        length, place = length + block[place], place + 1
    return length, place


def _number(data, place, size):
    if place + size > len(data):
        raise ValueError("truncated")
    return int.from_bytes(data[place : place + size], "little")


class _Dtype:
    """What the pickle says of a dtype: _Dtype("f4", ...), then the state (version, byte order, ...)."""

    def __init__(self, kind, *_):
        self.kind, self.order = kind, "="

    def __setstate__(self, state):
        self.order = state[1]


class _Array:
    """joblib's NumpyArrayWrapper: its attributes are the state."""

    def read(self, file):
        """The array, whose bytes come next; before them padding and, in one byte, how long it is."""
        if getattr(self, "numpy_array_alignment_bytes", None) is not None:
            file.read(file.read(1)[0])
        if self.dtype.kind not in ("f4", "f8") or self.order not in ("C", "F"):
            raise ValueError(f"an array of dtype {self.dtype.kind}")
        dtype = np.dtype(self.dtype.order + self.dtype.kind)
        elements = np.frombuffer(file.read(math.prod(self.shape) * dtype.itemsize), dtype)
        return elements.reshape(self.shape, order=self.order).astype(dtype.newbyteorder("="))


_ALLOWED = {
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): "numpy.ndarray",  # text, so that a pickle that "calls" it gets an error and no object
}


class _Unpickler(pickle._Unpickler):  # the one in Python, which can be stopped where an array begins
    def __init__(self, file, path):
        super().__init__(file)
        self.file, self.path = file, path

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise WeightsError(f"{self.path}: refused to unpickle {module}.{name}: only a list of arrays is read")
        return _ALLOWED[module, name]

    def load_build(self):
        super().load_build()
        if isinstance(self.stack[-1], _Array):
            self.stack[-1] = self.stack[-1].read(self.file)


_Unpickler.dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: _Unpickler.load_build}
