"""Checkpoints are written here byte by byte, so that PyTorch is not needed and hostile files can be made."""

import pickle
import struct
import zipfile

import h5py
import keras
import numpy as np
import pytest
import safetensors.numpy
from keras import layers

from tfdet.errors import WeightsError
from tfdet.weights import load_arrays, load_torch, read_state_dict

# The few pickle opcodes of which PyTorch makes its files.


def text(string):
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def integer(number):
    return b"I%d\n" % number


def group(*items):
    return b"(" + b"".join(items) + b"t"


def look_up(module, name):
    return f"c{module}\n{name}\n".encode()


def call(module, name, *arguments):
    return look_up(module, name) + group(*arguments) + b"R"


def dictionary(items, empty=b"}"):
    return empty + b"".join(text(key) + value + b"s" for key, value in items.items())


def tensor(kind, key, numel, size, strides, offset=0, view=b""):
    storage = group(text("storage"), look_up("torch", kind), text(key), text("cpu"), integer(numel), view) + b"Q"
    shape = [group(*map(integer, numbers)) for numbers in (size, strides)]
    hooks = call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", storage, integer(offset), *shape, b"\x89", hooks)


def finish(value):
    return b"\x80\x02" + value + b"."


def write_zip(path, saved, storages, byteorder=b"little"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", finish(saved))
        archive.writestr("net/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"net/data/{key}", data)


def write_legacy(path, saved, storages):
    magic = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}]
    parts = [pickle.dumps(part, protocol=2) for part in magic]
    parts += [finish(saved), pickle.dumps(list(storages), protocol=2)]
    itemsize = {"0": 4, "1": 8}  # float32 and float64, in all files written here
    parts += [struct.pack("<q", len(data) // itemsize[key]) + data for key, data in storages.items()]
    path.write_bytes(b"".join(parts))


NUMBERS = np.arange(12, dtype=np.float32)
ROWS = tensor("FloatStorage", "0", 12, (3, 4), (4, 1))
BOTH_FORMATS = pytest.mark.parametrize("write", [write_zip, write_legacy])


@BOTH_FORMATS
def test_tensors_are_views_of_a_shared_storage(tmp_path, write):
    path = tmp_path / "w.pth"
    ordered = call("collections", "OrderedDict")
    views = {
        "rows": ROWS,
        "columns": tensor("FloatStorage", "0", 12, (4, 3), (1, 4)),
        "part": tensor("FloatStorage", "0", 12, (2, 2), (4, 1), offset=5),
        "repeated": tensor("FloatStorage", "0", 12, (2, 3), (0, 1)),
        "scalar": tensor("FloatStorage", "0", 12, (), (), offset=7),
        "empty": tensor("FloatStorage", "0", 12, (0, 4), (4, 1)),
        "parameter": call("torch._utils", "_rebuild_parameter", ROWS, b"\x88", ordered),
    }
    write(path, dictionary(views, empty=ordered), {"0": NUMBERS.tobytes()})
    state = read_state_dict(path)
    rows = NUMBERS.reshape(3, 4)
    expected = [rows, rows.T, [[5, 6], [9, 10]], [[0, 1, 2], [0, 1, 2]], 7, np.zeros((0, 4)), rows]
    assert list(state) == list(views)
    for got, want in zip(state.values(), expected, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == np.float32
        assert got.flags.writeable


@pytest.mark.parametrize(
    ("kind", "data", "byteorder", "expected", "dtype"),
    [
        ("HalfStorage", np.array([1.5, -2], "<f2"), b"little", [1.5, -2], np.float32),
        ("BFloat16Storage", np.array([0x3FC0, 0xC000], "<u2"), b"little", [1.5, -2], np.float32),
        ("DoubleStorage", np.array([1.5, -2], "<f8"), b"little", [1.5, -2], np.float64),
        ("LongStorage", np.array([3, -2], "<i8"), b"little", [3, -2], np.int64),
        ("BoolStorage", np.array([True, False]), b"little", [True, False], np.bool_),
        ("FloatStorage", np.array([1.5, -2], ">f4"), b"big", [1.5, -2], np.float32),
    ],
)
def test_number_formats(tmp_path, kind, data, byteorder, expected, dtype):
    path = tmp_path / "w.pth"
    write_zip(path, dictionary({"a": tensor(kind, "0", 2, (2,), (1,))}), {"0": data.tobytes()}, byteorder)
    (array,) = read_state_dict(path).values()
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == dtype


@BOTH_FORMATS
def test_nested_state_dict(tmp_path, write):
    path = tmp_path / "w.pth"
    inner = dictionary({"module.fc.weight": ROWS})
    momentum = tensor("DoubleStorage", "1", 2, (2,), (1,))  # of the optimizer, before the weights in the file
    saved = dictionary({"epoch": integer(3), "momentum": momentum, "state_dict": inner})
    write(path, saved, {"1": np.zeros(2).tobytes(), "0": NUMBERS.tobytes()})
    state = read_state_dict(path)
    assert list(state) == ["fc.weight"]
    np.testing.assert_array_equal(state["fc.weight"], NUMBERS.reshape(3, 4))


@BOTH_FORMATS
def test_a_malicious_pickle_is_refused_before_it_runs(tmp_path, write):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    write(path, dictionary({"a": call("os", "system", text(f"touch {trace}"))}), {})
    with pytest.raises(WeightsError, match=r"evil\.pth: refused to unpickle os\.system"):
        read_state_dict(path)
    path.write_bytes(finish(call("builtins", "eval", text("1"))))
    with pytest.raises(WeightsError, match=r"refused to unpickle builtins\.eval"):
        read_state_dict(path)
    assert not trace.exists()


def _write_truncated(path, write):
    write(path, dictionary({"a": ROWS}), {"0": NUMBERS.tobytes()})
    path.write_bytes(path.read_bytes()[:-20])


def _write_tensor(path, view=b"", **changes):
    arguments = {"kind": "FloatStorage", "key": "0", "numel": 12, "size": (3, 4), "strides": (4, 1)} | changes
    write_legacy(path, dictionary({"a": tensor(**arguments, view=view)}), {"0": NUMBERS.tobytes()})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b""), "not a checkpoint"),
        (lambda path: path.write_text("<html>404 not found</html>"), "not a checkpoint"),
        (lambda path: _write_truncated(path, write_zip), "truncated"),
        (lambda path: _write_truncated(path, write_legacy), "truncated"),
        (lambda path: path.write_bytes(pickle.dumps([1, 2])), "truncated, or not a checkpoint"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 50), "truncated"),
        (lambda path: path.write_bytes(safetensors.numpy.save({"a": NUMBERS})[:-4]), "truncated"),
        (lambda path: np.savez(path.open("wb"), a=np.array([{}], object)), "truncated, or not a checkpoint"),
        (lambda path: write_zip(path, dictionary({"epoch": integer(3)}), {}), "holds no arrays"),
        (lambda path: write_zip(path, ROWS, {"0": NUMBERS.tobytes()}), "does not hold a dictionary"),
        (lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"), "neither of PyTorch nor .npz"),
        (lambda path: _write_tensor(path, offset=1), "a reaches outside of its storage"),
        (lambda path: _write_tensor(path, offset=-1), "a reaches outside of its storage"),
        (lambda path: _write_tensor(path, strides=(-4, 1)), "a reaches outside of its storage"),
        (lambda path: _write_tensor(path, kind="FloatStorage", key="1"), "truncated, or not a checkpoint"),
        (lambda path: _write_tensor(path, strides=(1,)), "truncated, or not a checkpoint"),
        (lambda path: _write_tensor(path, kind="QInt8Storage"), "refused to unpickle torch.QInt8Storage"),
        (lambda path: _write_tensor(path, view=group(text("1"), integer(0), integer(2))), "views"),
    ],
)
def test_unusable_files_give_one_line_with_the_name(tmp_path, write, message):
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state_dict(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_safetensors_and_npz(tmp_path):
    bfloat16 = np.dtype(keras.ops.zeros(1, "bfloat16").numpy().dtype)
    arrays = {"a": NUMBERS, "half": NUMBERS.astype(np.float16), "brain": NUMBERS.astype(bfloat16)}
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    np.savez(tmp_path / "w.npz", a=NUMBERS, half=arrays["half"])
    for path, names in (("w.safetensors", {"a", "half", "brain"}), ("w.npz", {"a", "half"})):
        state = read_state_dict(tmp_path / path)
        assert set(state) == names
        for array in state.values():
            np.testing.assert_array_equal(array, NUMBERS)
            assert array.dtype == np.float32


@pytest.mark.parametrize("length", range(1, 257, 8))
def test_safetensors_header_length_may_look_like_another_format(tmp_path, length):
    safetensors.numpy.save_file({"a" * length: NUMBERS}, tmp_path / "w.safetensors")
    assert list(read_state_dict(tmp_path / "w.safetensors")) == ["a" * length]


def test_keras_files(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, name="fc1"), layers.Dense(2, name="fc2")])
    model.save_weights(tmp_path / "w.weights.h5")
    with h5py.File(tmp_path / "old.h5", "w") as file:  # the layout of Keras 1 and 2
        for layer in model.layers:
            names = [f"{layer.name}_W_1:0", f"{layer.name}_b_1:0"]
            file.create_group(layer.name).attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, layer.get_weights(), strict=True):
                file[layer.name][name] = array
    for path in ("w.weights.h5", "old.h5"):
        state = read_state_dict(tmp_path / path)
        assert set(state) == {"fc1/0", "fc1/1", "fc2/0", "fc2/1"}
        for layer in model.layers:
            for i, array in enumerate(layer.get_weights()):
                np.testing.assert_array_equal(state[f"{layer.name}/{i}"], array)


def built(layer, channels=2):
    layer.build((None, 4, 4, channels))
    return layer


def test_load_torch_moves_the_axes():
    rng = np.random.RandomState(0)
    conv, depthwise = built(layers.Conv2D(5, 3)), built(layers.DepthwiseConv2D(3, use_bias=False))
    norm, dense, group = built(layers.BatchNormalization()), layers.Dense(5), built(layers.GroupNormalization(2))
    dense.build((None, 2))
    shapes = {"c.weight": (5, 2, 3, 3), "c.bias": (5,), "d.weight": (2, 1, 3, 3), "fc.weight": (5, 2), "fc.bias": (5,)}
    shapes |= {f"n.{name}": (2,) for name in ("weight", "bias", "running_mean", "running_var")}
    shapes |= {"g.weight": (2,), "g.bias": (2,)}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    state |= {"n.num_batches_tracked": np.array(7), "head.weight": np.zeros(3)}
    pairs = [(conv, "c"), (depthwise, "d"), (norm, "n"), (dense, "fc"), (group, "g")]
    load_torch(pairs, state, "w.pth", ignore="head.")
    # output channel 4, input channel 1, row 0, column 2
    assert conv.kernel[0, 2, 1, 4] == state["c.weight"][4, 1, 0, 2]
    assert depthwise.kernel[0, 2, 1, 0] == state["d.weight"][1, 0, 0, 2]
    assert dense.kernel[1, 4] == state["fc.weight"][4, 1]
    np.testing.assert_array_equal(conv.bias, state["c.bias"])
    names = ("weight", "bias", "running_mean", "running_var")
    for variable, name in zip((norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance), names, strict=True):
        np.testing.assert_array_equal(variable, state[f"n.{name}"])
    np.testing.assert_array_equal(group.gamma, state["g.weight"])
    np.testing.assert_array_equal(group.beta, state["g.bias"])


def test_load_torch_names_what_does_not_fit_and_changes_nothing():
    good, bad = built(layers.Conv2D(5, 3, name="good")), built(layers.Conv2D(5, 3, name="bad"))
    before = np.array(good.kernel)
    state = {
        "a.weight": np.ones((5, 2, 3, 3)),
        "a.bias": np.ones(5),
        "b.weight": np.ones((5, 3, 3, 3)),
        "x": np.ones(1),
    }
    with pytest.raises(WeightsError) as caught:
        load_torch([(good, "a"), (bad, "b")], state, "w.pth")
    assert str(caught.value) == (
        "w.pth: does not fit the network: b.weight has shape [5, 3, 3, 3], which does not fit bad/kernel [3, 3, 2, 5]; "
        "b.bias is missing; x is not used"
    )
    np.testing.assert_array_equal(good.kernel, before)
    with pytest.raises(WeightsError, match=r"u4 is not used; and 5 more"):
        load_torch([], {f"u{i}": np.ones(1) for i in range(10)}, "w.pth")
    with pytest.raises(TypeError, match="MaxPooling2D"):
        load_torch([(layers.MaxPooling2D(), "a")], {}, "w.pth")


def test_load_arrays_checks_shapes():
    conv = built(layers.Conv2D(5, 3, name="conv1"))
    load_arrays(conv, [np.ones((3, 3, 2, 5)), np.ones(5)], "w.h5")
    assert conv.bias[0] == 1
    with pytest.raises(
        WeightsError, match=r"w\.h5: .*conv1 has shapes \[\(5,\)\], but \[\(3, 3, 2, 5\), \(5,\)\] are needed"
    ):
        load_arrays(conv, [np.ones(5)], "w.h5")
