"""MTCNN with the weights that its authors released, as two packages on PyPI carry them.

    pip download --no-deps facenet-pytorch==2.6.0      (or mtcnn==1.0.0)
    model = mtcnn_original("facenet_pytorch-2.6.0-py3-none-any.whl")

Neither package is needed, nor PyTorch, and no arbitrary code is unpickled. Both hold the same numbers, to 2e-7.
"""

import zipfile
from pathlib import Path, PurePath

from tfdet.detectors.mtcnn import mtcnn
from tfdet.errors import WeightsError
from tfdet.weights import load_arrays, load_torch, read_state_dict

NETWORKS = ("pnet", "rnet", "onet")
KINDS = ("pt", "lz4")  # of facenet-pytorch and of mtcnn
OUTPUTS = {  # as facenet-pytorch calls the last layers
    "pnet": {"face": "conv4_1", "box": "conv4_2"},
    "rnet": {"face": "dense5_1", "box": "dense5_2"},
    "onet": {"face": "dense6_1", "box": "dense6_2", "landmarks": "dense6_3"},
}
DENSE = ("dense4", "dense5")  # the first dense layers, of R-Net and O-Net: they read maps of 3 x 3, column by column


def mtcnn_original(path, min_face=20, thresholds=(0.6, 0.7, 0.7), factor=0.709, keep=200):
    """MTCNN with the weights of the PyPI package `facenet-pytorch` 2.6.0 or `mtcnn` 1.0.0.

    Args:
        path: the package's wheel, or a folder with its pnet.pt, rnet.pt and onet.pt, or pnet.lz4, rnet.lz4 and
            onet.lz4.
        others: see `mtcnn`.
    Raises:
        WeightsError: the files are not there, cannot be read or do not fit.
    """
    model = mtcnn(min_face, thresholds, factor, keep)
    for name, (source, content) in _files(path).items():
        state, network = read_state_dict(content, source), getattr(model, name)
        if "0" in state:
            _load_list(network, state, source)
        else:
            _load_torch(network, state, source)
    return model


def _files(path):
    """A wheel or a folder -> {network: (what messages call its file, the file's content)}."""
    path = Path(path)
    try:
        if path.is_dir():
            contents = {file.name: file.read_bytes() for file in path.iterdir() if file.suffix[1:] in KINDS}
        else:
            with zipfile.ZipFile(path) as wheel:
                members = [name for name in wheel.namelist() if PurePath(name).suffix[1:] in KINDS]
                contents = {PurePath(name).name: wheel.read(name) for name in members}
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: neither a folder nor a wheel that can be read: {error}") from error
    for kind in KINDS:
        if {f"{name}.{kind}" for name in NETWORKS} <= set(contents):
            return {name: (f"{path}/{name}.{kind}", contents[f"{name}.{kind}"]) for name in NETWORKS}
    raise WeightsError(f"{path}: has neither pnet.pt, rnet.pt and onet.pt nor pnet.lz4, rnet.lz4 and onet.lz4")


def _load_torch(network, state, source):
    """What facenet-pytorch has of a network."""
    for key in (f"{name}.weight" for name in DENSE):
        if key in state:
            state[key] = _row_by_row(state[key].T).T
    layers = {layer: OUTPUTS[network.name].get(layer.name, layer.name) for layer in network.layers if layer.weights}
    load_torch(list(layers.items()), state, source)


def _load_list(network, state, source):
    """What mtcnn has of a network: the arrays of its layers, in Keras' layout, in this order."""
    outputs = [name for name in ("box", "landmarks", "face") if name in OUTPUTS[network.name]]
    body = [layer for layer in network.layers if layer.weights and layer.name not in outputs]
    layers, arrays = [*body, *map(network.get_layer, outputs)], list(state.values())
    if len(arrays) != sum(len(layer.weights) for layer in layers):
        raise WeightsError(f"{source}: does not fit the network: it has {len(arrays)} arrays")
    for layer in layers:
        own, arrays = arrays[: len(layer.weights)], arrays[len(layer.weights) :]
        if layer.name in DENSE:
            own[0] = _row_by_row(own[0])
        own = [array.reshape(-1) if array.shape[:-1] == (1, 1) else array for array in own]  # a PReLU's
        load_arrays(layer, own, source)


def _row_by_row(kernel):
    """A kernel [3 * 3 * C, N] that reads maps of 3 x 3 column by column -> one that reads them row by row."""
    if kernel.ndim != 2 or len(kernel) % 9:
        return kernel  # refused later
    return kernel.reshape(3, 3, -1, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)
