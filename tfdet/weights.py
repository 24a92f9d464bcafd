"""Reading published checkpoints into NumPy arrays, and giving them to Keras layers.

    state = read_state_dict("mobilenet_v2.pth")
    load_torch([(conv, "features.0.0"), (norm, "features.0.1"), ...], state, "mobilenet_v2.pth", ignore="classifier.")

PyTorch is not needed. A PyTorch file holds a pickle, and a pickle may name any Python function to be called: only the
few names that a dictionary of tensors needs are let through, everything else is refused before it runs.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import h5py
import keras
import numpy as np
import safetensors

from . import joblib_pickle
from .deformable import DeformableConv2D
from .errors import WeightsError
from .prelu import PReLU
from .upsampling import DepthwiseConv2DTranspose


def read_state_dict(path, source=None):
    """Reads the arrays of a checkpoint. The kind of file is told by its content, not by its name.

    Reads PyTorch files (the zip format and the older one; a state dict may lie under "state_dict" or "model", and a
    "module." before every name, left by DataParallel, is dropped), safetensors, `.npz`, Keras `.weights.h5` and `.h5`,
    and a list of arrays written by joblib with LZ4.

    Args:
        path: of the file; or its content as bytes, and `source` is what messages call it.
    Returns: a dict from name to array. Half precision and bfloat16 come back as float32. The arrays of Keras files are
        named "layer/0", "layer/1", ... in the order of `layer.get_weights()`, those of a list "0", "1", ...
    Raises: WeightsError, naming the file, when it is missing, truncated, not a checkpoint, or a pickle that asks for
        anything but tensors.
    """
    content, path = path, source or path
    try:
        with io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb") as file:
            start = file.read(9)
            file.seek(0)
            if start[8:] == b"{":  # eight bytes of length, which may look like anything, then JSON
                arrays = _read_safetensors(file)
            elif start[:4] == b"PK\x03\x04":
                arrays = _read_zip(file, path)
            elif start[:8] == b"\x89HDF\r\n\x1a\n":
                arrays = _read_hdf5(file)
            elif start[:4] == joblib_pickle.MAGIC:
                arrays = {str(i): array for i, array in enumerate(joblib_pickle.read_arrays(file.read(), path))}
            elif start[:1] == b"\x80":  # the opcode every pickle since protocol 2 starts with
                arrays = _read_legacy_torch(file, path)
            else:
                raise WeightsError(f"{path}: not a checkpoint: neither PyTorch, safetensors, npz, HDF5 nor joblib's")
    except WeightsError:
        raise
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except Exception as error:  # a broken file can break its reader in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WeightsError(f"{path}: truncated, or not a checkpoint ({reason})") from error
    if not arrays:
        raise WeightsError(f"{path}: holds no arrays")
    return {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in arrays.items()}


def keras_application(build, **arguments):
    """A network of keras.applications with its ImageNet weights, which Keras downloads once.

    Raises: WeightsError if they cannot be had, with what can be done instead.
    """
    try:
        return build(weights="imagenet", **arguments)
    except Exception as error:  # Keras raises a bare Exception for a failed download
        reason = str(error).splitlines()[0]
        raise WeightsError(f"imagenet weights of {build.__name__}: {reason}; a file with weights works too") from error


def load_torch(pairs, state, source, ignore=()):
    """Gives the tensors of a PyTorch state dict to Keras layers.

    Args:
        pairs: list of (built Keras layer, name of the PyTorch module). The layer's class tells how the axes are moved:
            Conv2D OIHW -> HWIO, Conv2DTranspose IOHW -> HWOI, DepthwiseConv2D C1HW -> HWC1, those of tfdet alike,
            Dense [out, in] -> [in, out], BatchNormalization, GroupNormalization and PReLU as they are.
        state: dict from name to array, as `read_state_dict` gives it.
        source: the file's name, for the error.
        ignore: prefix, or tuple of prefixes, of the names that may be left unused.
    Raises: WeightsError naming the tensors that are missing, of another shape, or unused. No layer is changed then.
    """
    problems, assignments, used = [], [], set()
    for layer, module in pairs:
        for variable, name, axes in _torch_tensors(layer):
            key = f"{module}.{name}"
            used.add(key)
            if key not in state:
                problems.append(f"{key} is missing")
                continue
            tensor = state[key]
            value = tensor.transpose(axes) if axes and tensor.ndim == len(axes) else tensor
            if value.shape != tuple(variable.shape):
                problems.append(
                    f"{key} has shape {list(tensor.shape)}, which does not fit {variable.path} {list(variable.shape)}"
                )
            else:
                assignments.append((variable, value))
    unused = [key for key in state if key not in used and not key.endswith(".num_batches_tracked")]
    problems += [f"{key} is not used" for key in unused if not key.startswith(ignore)]
    _raise_if(problems, source)
    for variable, value in assignments:
        variable.assign(value)


def load_arrays(layer, arrays, source):
    """Gives arrays in Keras' own layout to a layer, in the order of `layer.get_weights()`.

    Raises: WeightsError naming the layer, when their number or their shapes do not fit.
    """
    expected = [tuple(variable.shape) for variable in layer.weights]
    given = [np.shape(array) for array in arrays]
    _raise_if([f"{layer.name} has shapes {given}, but {expected} are needed"] if given != expected else [], source)
    layer.set_weights(arrays)


def _torch_tensors(layer):
    """Lists (Keras variable, PyTorch name, order of the axes) of one layer."""
    if isinstance(layer, keras.layers.BatchNormalization):
        names = [(layer.gamma, "weight"), (layer.beta, "bias")]
        names += [(layer.moving_mean, "running_mean"), (layer.moving_variance, "running_var")]
        return [(variable, name, None) for variable, name in names]
    if isinstance(layer, PReLU):
        return [(layer.alpha, "weight", None)]
    if isinstance(layer, keras.layers.GroupNormalization):
        return [(layer.gamma, "weight", None), (layer.beta, "bias", None)]
    if type(layer) not in _TORCH_AXES:
        raise TypeError(f"load_torch does not know the layout of {type(layer).__name__} ({layer.name})")
    bias = [(layer.bias, "bias", None)] if layer.use_bias else []
    return [(layer.kernel, "weight", _TORCH_AXES[type(layer)]), *bias]


# Where PyTorch has the axes of each layer's kernel
_TORCH_AXES = {
    keras.layers.Conv2D: (2, 3, 1, 0),
    keras.layers.Conv2DTranspose: (2, 3, 1, 0),
    DeformableConv2D: (2, 3, 1, 0),
    keras.layers.DepthwiseConv2D: (2, 3, 0, 1),
    DepthwiseConv2DTranspose: (2, 3, 0, 1),
    keras.layers.Dense: (1, 0),
}


def _raise_if(problems, source, shown=5):
    if problems:
        rest = f"; and {len(problems) - shown} more" if len(problems) > shown else ""
        raise WeightsError(f"{source}: does not fit the network: {'; '.join(problems[:shown])}{rest}")


# PyTorch files. A tensor is a view of a storage: (storage, offset, size, strides), counted in elements.


class _Storage(NamedTuple):
    key: str
    kind: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple
    strides: tuple


def _rebuild_tensor(storage, offset, size, strides, *_):
    return _Tensor(storage, offset, tuple(size), tuple(strides))


_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # NumPy has no bfloat16: its bits are widened in `_to_array`
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}

# Storage kinds stay strings, so that a pickle that "calls" one gets an error and no object.
_ALLOWED = {("torch", kind): kind for kind in _DTYPES} | {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of `_Tensor`s and refuses to look up any other name."""

    def __init__(self, file, path):
        super().__init__(file, encoding="utf-8")
        self.path = path
        self.kinds = {}  # storage key -> kind, of every storage met

    def find_class(self, module, name):
        if (module, name) not in _ALLOWED:
            raise WeightsError(
                f"{self.path}: refused to unpickle {module}.{name}: only a dictionary of tensors is read"
            )
        return _ALLOWED[module, name]

    def persistent_load(self, saved):
        _, kind, key, _, _, *view = saved
        if view and view[0] is not None:
            raise WeightsError(f"{self.path}: storages that are views, of PyTorch before 0.4, are not read")
        self.kinds[key] = kind
        return _Storage(key, kind)


def _read_zip(file, path):
    """Reads the zip format of PyTorch 1.6 and later (NAME/data.pkl, NAME/data/KEY), or an `.npz`."""
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if not pickles:
            if not all(name.endswith(".npy") for name in archive.namelist()):
                raise WeightsError(f"{path}: a zip file, but neither of PyTorch nor .npz")
            file.seek(0)
            arrays = np.load(file, allow_pickle=False)
            return {name: arrays[name] for name in arrays.files}
        folder = pickles[0].removesuffix("data.pkl")
        with archive.open(pickles[0]) as data:
            saved = _Unpickler(data, path).load()
        order = archive.read(folder + "byteorder") if folder + "byteorder" in archive.namelist() else b"little"
        return _to_arrays(saved, lambda storage: archive.read(f"{folder}data/{storage.key}"), order == b"little")


def _read_legacy_torch(file, path):
    """Reads the format of PyTorch before 1.6: five pickles, then each storage as its length and its elements."""
    magic, _version, system = (_Unpickler(file, path).load() for _ in range(3))
    if magic != 0x1950A86A20F9469CFC6C:
        raise WeightsError(f"{path}: a pickle, but not one of PyTorch")
    unpickler = _Unpickler(file, path)
    saved, storages = unpickler.load(), {}
    for key in _Unpickler(file, path).load():
        (length,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(length * np.dtype(_DTYPES[unpickler.kinds[key]]).itemsize)
    return _to_arrays(saved, lambda storage: storages[storage.key], system["little_endian"])


def _tensors_of(saved):
    """Finds the state dict in what was saved; numbers and settings beside the tensors are left out."""
    if not isinstance(saved, dict):
        raise ValueError("it does not hold a dictionary")
    while inner := next((saved[key] for key in ("state_dict", "model") if isinstance(saved.get(key), dict)), None):
        saved = inner
    tensors = {name: tensor for name, tensor in saved.items() if isinstance(tensor, _Tensor)}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _to_arrays(saved, read, little_endian):
    """Turns tensors into arrays; `read(storage)` gives the bytes of a storage, which several tensors may share."""
    contents, arrays = {}, {}
    for name, tensor in _tensors_of(saved).items():
        storage, offset, size, strides = tensor
        if storage.key not in contents:
            contents[storage.key] = read(storage)
        dtype = np.dtype(_DTYPES[storage.kind]).newbyteorder("<" if little_endian else ">")
        elements = np.frombuffer(contents[storage.key], dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(size, strides, strict=True))
        if min((offset, *size, *strides)) < 0 or (math.prod(size) and last >= len(elements)):
            raise ValueError(f"{name} reaches outside of its storage")  # as_strided itself would read past the end
        view = np.lib.stride_tricks.as_strided(elements[offset:], size, [stride * dtype.itemsize for stride in strides])
        if storage.kind == "BFloat16Storage":
            arrays[name] = _widen(view)
        else:
            arrays[name] = view.astype(dtype.newbyteorder("="))
    return arrays


def _widen(bits):
    """bfloat16, given as its 16 bits, to float32: the upper half of the same number."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _read_safetensors(file):
    dtypes = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
    dtypes |= {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
    arrays = {}
    for name, tensor in safetensors.deserialize(file.read()):
        array = np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        arrays[name] = _widen(array) if tensor["dtype"] == "BF16" else array
    return arrays


def _read_hdf5(file):
    """Reads Keras weights: `.weights.h5` (LAYER/vars/0, the layer's name an attribute), and `.h5` of Keras 1 and 2."""
    arrays = {}

    def visit(path, group):
        if "weight_names" in group.attrs:
            datasets = [group[name] for name in group.attrs["weight_names"]]
            layer = path.split("/")[-1]
        elif isinstance(group, h5py.Group) and path.split("/")[-1] == "vars" and len(group):
            datasets = [group[str(i)] for i in range(len(group))]
            layer = group.attrs.get("name", path.split("/")[-2] if "/" in path else path)
        else:
            return
        arrays.update({f"{layer}/{i}": dataset[()] for i, dataset in enumerate(datasets)})

    with h5py.File(file, "r") as root:
        root.visititems(visit)
    return arrays
