"""Weights for MTCNN in the files of facenet-pytorch, which PyTorch ran as well for the numbers in the tests."""

import numpy as np
import pytest

SHAPES = {
    "pnet": {"conv1": (10, 3, 3, 3), "conv2": (16, 10, 3, 3), "conv3": (32, 16, 3, 3)},
    "rnet": {"conv1": (28, 3, 3, 3), "conv2": (48, 28, 3, 3), "conv3": (64, 48, 2, 2), "dense4": (128, 576)},
    "onet": {
        **{"conv1": (32, 3, 3, 3), "conv2": (64, 32, 3, 3), "conv3": (64, 64, 3, 3), "conv4": (128, 64, 2, 2)},
        "dense5": (256, 1152),
    },
}
LAST = {  # the first tells faces, the others move
    "pnet": {"conv4_1": (2, 32, 1, 1), "conv4_2": (4, 32, 1, 1)},
    "rnet": {"dense5_1": (2, 128), "dense5_2": (4, 128)},
    "onet": {"dense6_1": (2, 256), "dense6_2": (4, 256), "dense6_3": (10, 256)},
}


@pytest.fixture(scope="session")
def facenet_states(seeded):
    """{network: its state dict as facenet-pytorch names it}: numbers of a kind that finds faces here and there."""
    states = {}
    for network, shapes in SHAPES.items():
        state = states[network] = {}
        for name, shape in {**shapes, **LAST[network]}.items():
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                state[f"{name}.{kind}"] = seeded(f"{network}.{name}.{kind}", size)
        for name, shape in shapes.items():
            key = f"prelu{name[-1]}.weight"
            state[key] = seeded(f"{network}.{key}", shape[:1]) * np.float32(0.2)
        faces, *moves = LAST[network]
        state[f"{faces}.weight"] -= state[f"{faces}.weight"].mean(axis=1, keepdims=True)
        for name in moves:
            state[f"{name}.weight"] *= np.float32(0.05)
            state[f"{name}.bias"] *= np.float32(0.05)
    return states


@pytest.fixture(scope="session")
def facenet_folder(facenet_states, tmp_path_factory):
    """A folder of such files. The reader tells their kind by their content, and .npz needs no PyTorch."""
    folder = tmp_path_factory.mktemp("facenet_pytorch")
    for network, state in facenet_states.items():
        with open(folder / f"{network}.pt", "wb") as file:
            np.savez(file, **state)
    return folder


@pytest.fixture(scope="session")
def photograph():
    """uint8 [90, 120, 3] of coloured squares with noise."""
    numbers = np.random.RandomState(1)
    pixels = np.kron(numbers.randint(0, 256, (9, 12, 3)), np.ones((10, 10, 1))).astype(int)
    return np.clip(pixels + numbers.randint(-20, 21, pixels.shape), 0, 255).astype(np.uint8)
