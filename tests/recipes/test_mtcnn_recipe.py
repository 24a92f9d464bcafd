"""The recipe of MTCNN on drawn faces: the three networks, their folders, and going on where it stopped."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from tfdet import commandline, runs, serving
from tfdet.recipes import mtcnn

FLAGS = ["--batch-size", "28", "--epochs", "2", "--learning-rate", "0.003", "--min-face", "20"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags: WIDER FACE's lists and a list of landmarks of drawn faces, skin with eyes and a mouth on noise."""
    folder = tmp_path_factory.mktemp("faces")
    random = np.random.RandomState(0)
    (folder / "wider_face_split").mkdir()
    rows = []
    for split, count in (("train", 4), ("val", 2)):
        lines = []
        for i in range(count):
            image = random.randint(0, 120, (120, 160, 3)).astype(np.uint8)
            boxes = [(15 + 3 * i, 20, 36, 42), (90, 30 + 5 * i, 30, 36)]
            for box in boxes:
                rows.append((f"{split}{i}.png", box, _draw(image, *box)))
            path = folder / f"WIDER_{split}" / "images" / f"{split}{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
            Image.fromarray(image).save(folder / path.name)
            lines += [path.name, str(len(boxes)), *(" ".join(map(str, (*box, 0, 0, 0, 0, 0, 0))) for box in boxes)]
        (folder / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text("\n".join(lines))
    # A hash of the path divides the list into splits: enough copies, and each has some.
    lines = []
    for copy in range(12):
        for name, (x, y, w, h), places in rows:
            path = folder / f"{copy}-{name}"
            path.write_bytes((folder / name).read_bytes())
            numbers = [x, x + w, y, y + h, *np.ravel(places)]
            lines.append(" ".join([path.name, *(f"{number:.1f}" for number in numbers)]))
    (folder / "list.txt").write_text("\n".join(lines))
    return ["--data", f"wider_face:{folder}", "--landmarks", f"landmarks:{folder / 'list.txt'}"]


def _draw(image, x, y, width, height):
    """A face; returns where its landmarks are."""
    image[y : y + height, x : x + width] = (230, 180, 150)
    places = [
        (x + dx * width, y + dy * height) for dx, dy in ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
    ]
    for px, py in places[:2]:
        image[int(py) - 3 : int(py) + 3, int(px) - 4 : int(px) + 4] = (20, 20, 60)
    left, right = places[3:]
    image[int(left[1]) - 2 : int(left[1]) + 2, int(left[0]) : int(right[0])] = (160, 20, 20)
    return places


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "export", lambda model, folder: folder.mkdir())
        folder = tmp_path_factory.mktemp("runs") / "run"
        mtcnn.main([*data, *FLAGS, "--output", str(folder)])
    return folder


def test_the_run_folder_holds_everything(finished):
    for network in ("pnet", "rnet", "onet"):
        history = runs.read_history(finished / network)
        assert len(history["loss"]) == 2
        counts = [history[f"face_{kind}"][1] for kind in ("positives", "negatives", "parts", "landmarks")]
        assert counts == [128, 384, 128, 256]  # 32 batches of four groups
        assert (finished / network / "curves.png").stat().st_size
        assert keras.models.load_model(finished / network / "best.keras").name == network
    model = keras.models.load_model(finished / "best.keras")
    for network in ("pnet", "rnet", "onet"):
        trained = keras.models.load_model(finished / network / "best.keras").get_weights()
        for one, other in zip(getattr(model, network).get_weights(), trained, strict=True):
            np.testing.assert_array_equal(one, other)
    figures = json.loads((finished / "evaluation.json").read_text())
    assert {"AP50", "VOC_AP_area", "landmarks:list val"} <= set(figures)
    assert "landmark_recall" in figures["landmarks:list val"]
    assert {path.name for path in finished.iterdir()} >= {"settings.toml", "predictions.png", "export"}


@pytest.mark.parametrize("cut_off", ["before O-Net", "in O-Net"])
def test_it_goes_on_where_it_stopped(finished, tmp_path, monkeypatch, cut_off):
    """The first two networks are not trained again, and the end is that of the run that was not cut off."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if cut_off == "before O-Net":
        shutil.rmtree(folder / "onet")
    else:
        (folder / "onet" / "checkpoints" / "epoch-00002.keras").unlink()
    monkeypatch.setattr(runs, "report", lambda *_, **__: {"AP": 0.0, "AP50": 0.0, "landmarks:list val": {}})
    fitted = []
    monkeypatch.setattr(mtcnn, "_fit", lambda name, *others, fit=mtcnn._fit: fitted.append(name) or fit(name, *others))
    mtcnn.main(["--resume", str(folder)])
    assert fitted == ["onet"]
    ends = [runs.last_checkpoint(path / "onet").get_weights() for path in (finished, folder)]
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert runs.read_history(folder / "onet").keys() == runs.read_history(finished / "onet").keys()
    assert len(runs.read_history(folder / "onet")["loss"]) == 2


WRONG = {
    "nothing to learn from": ([], "--data wider_face:DIR --landmarks landmarks:FILE"),
    "a batch without the shares": (["--data", "x", "--landmarks", "y", "--batch-size", "64"], "multiple of 7"),
    "faces smaller than a window": (["--data", "x", "--landmarks", "y", "--min-face", "8"], "at least 12"),
}


@pytest.mark.parametrize(("flags", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_ends_with_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as stop:
        mtcnn.main(flags)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("tfdet: error: ") and message in err and err.count("\n") == 1


def test_data_of_more_than_faces_is_refused(data, tmp_path, table, capsys):
    with pytest.raises(SystemExit):
        mtcnn.main(["--data", f"csv:{table}", *data[2:], *FLAGS, "--output", str(tmp_path / "run")])
    assert "MTCNN finds faces, one class" in capsys.readouterr().err


def test_settings_files_fill_what_is_not_given():
    settings = mtcnn.resolve(commandline.parse(mtcnn.Settings, ["--data", "a", "--landmarks", "b"]))
    assert {key: getattr(settings, key) for key in mtcnn.DEFAULTS} == mtcnn.DEFAULTS
    settings = mtcnn.resolve(commandline.parse(mtcnn.Settings, ["--data", "a", "--landmarks", "b", "--epochs", "3"]))
    assert (settings.epochs, settings.steps) == (3, None)
