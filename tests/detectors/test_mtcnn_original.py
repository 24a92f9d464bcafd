import io
import zipfile

import numpy as np
import pytest

from tfdet.detectors.mtcnn_original import mtcnn_original
from tfdet.errors import WeightsError


def as_mtcnn_has_it(network, state):
    """A state dict of facenet-pytorch -> the list of arrays in the package mtcnn, as .npz of "0", "1", ..."""
    kernels = [key for key in state if key.endswith(".weight") and not key.startswith("prelu")]
    faces, box, *landmarks = [key for key in kernels if "_" in key]
    arrays = []
    for key in [*(key for key in kernels if "_" not in key), box, *landmarks, faces]:
        kernel, bias = state[key], state[key.replace("weight", "bias")]
        arrays += [kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, bias]
        if "_" not in key:
            alpha = state[f"prelu{key[-8]}.weight"]
            arrays.append(alpha.reshape(1, 1, -1) if kernel.ndim == 4 else alpha)
    return {str(i): array for i, array in enumerate(arrays)}


def npz(state):
    file = io.BytesIO()
    np.savez(file, **state)
    return file.getvalue()


def weights_of(path):
    return mtcnn_original(path).get_weights()


def test_both_packages_and_their_wheels_give_the_same(facenet_folder, facenet_states, tmp_path):
    expected = weights_of(facenet_folder)
    for network, state in facenet_states.items():
        (tmp_path / f"{network}.lz4").write_bytes(npz(as_mtcnn_has_it(network, state)))
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as wheel:
        for network in facenet_states:
            wheel.write(facenet_folder / f"{network}.pt", f"facenet_pytorch/data/{network}.pt")
        wheel.writestr("facenet_pytorch/__init__.py", "raise SystemExit")
    for path in (tmp_path, tmp_path / "package.whl"):
        assert all(np.array_equal(a, b) for a, b in zip(weights_of(path), expected, strict=True))


def change(facenet_states, tmp_path, network, **changes):
    """A folder of the files with other tensors in one of them; None leaves a tensor out."""
    for name, state in facenet_states.items():
        if name == network:
            state = {**state, **changes}
        state = {key: value for key, value in state.items() if value is not None}
        (tmp_path / f"{name}.pt").write_bytes(npz(state))
    return tmp_path


@pytest.mark.parametrize(
    ("network", "changes", "words"),
    [
        ("rnet", {"dense5_1.bias": None}, "rnet.pt: does not fit the network: dense5_1.bias is missing"),
        ("onet", {"dense5.weight": np.zeros((256, 7))}, "dense5.weight has shape [256, 7]"),
        ("pnet", {"conv5.weight": np.zeros(3)}, "conv5.weight is not used"),
        ("pnet", {"prelu1.weight": np.zeros(3)}, "prelu1.weight has shape [3]"),
    ],
)
def test_what_does_not_fit_is_named(facenet_states, tmp_path, network, changes, words):
    with pytest.raises(WeightsError) as error:
        mtcnn_original(change(facenet_states, tmp_path, network, **changes))
    assert words in str(error.value)


def test_a_list_that_does_not_fit_is_named(facenet_states, tmp_path):
    lists = {name: as_mtcnn_has_it(name, state) for name, state in facenet_states.items()}
    for name, arrays in lists.items():
        (tmp_path / f"{name}.lz4").write_bytes(npz(arrays))
    (tmp_path / "rnet.lz4").write_bytes(npz({key: value for key, value in lists["rnet"].items() if key != "3"}))
    with pytest.raises(WeightsError, match=r"rnet\.lz4: does not fit the network: it has 15 arrays"):
        mtcnn_original(tmp_path)
    (tmp_path / "rnet.lz4").write_bytes(npz({**lists["rnet"], "4": np.zeros(5)}))
    with pytest.raises(WeightsError, match="conv2 has shapes"):
        mtcnn_original(tmp_path)


def test_other_paths_are_one_line(facenet_folder, tmp_path):
    (tmp_path / "text.whl").write_text("no wheel")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "pnet.pt").write_bytes((facenet_folder / "pnet.pt").read_bytes())
    for path, words in (
        (tmp_path / "nothing", "neither a folder nor a wheel"),
        (tmp_path / "text.whl", "neither a folder nor a wheel"),
        (tmp_path / "some", "has neither pnet.pt, rnet.pt and onet.pt"),
    ):
        with pytest.raises(WeightsError) as error:
            mtcnn_original(path)
        assert words in str(error.value)
        assert str(path) in str(error.value)
