import dataclasses
from typing import Literal

import pytest

from tfdet import commandline
from tfdet.errors import DataError


@dataclasses.dataclass(frozen=True)
class Options:
    """Something to be done."""

    data: str = "shapes"
    """Where the data are."""
    config: str | None = None
    """TOML file beneath the flags."""
    resume: str | None = None
    """Folder whose settings lie beneath the flags."""
    steps: int | None = None
    """How many steps."""
    rate: float = 0.5
    """How fast."""
    drops: tuple[int, ...] | None = None
    """When to slow down."""
    weights: str | None = None
    """A file, or none."""
    kind: Literal["small", "large"] = "small"
    """How large."""
    keep_all: bool = False
    """Throw nothing away."""


@dataclasses.dataclass(frozen=True)
class Look:
    """Looks at a file."""

    file: str
    """What to look at."""
    twice: bool = False
    """Look again."""


@dataclasses.dataclass(frozen=True)
class Leave:
    """Leaves."""


COMMANDS = {"look": Look, "leave": Leave}


def fails(capsys, call):
    """The one line that `call()` ends the program with."""
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tfdet: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {}),
        (["--steps", "7", "--rate", "1e-3"], {"steps": 7, "rate": 0.001}),
        (["--steps=7"], {"steps": 7}),
        (["--drops", "10", "20"], {"drops": (10, 20)}),
        (["--drops"], {"drops": ()}),
        (["--weights", "none"], {"weights": "none"}),  # a word of its own, not Python's None
        (["--kind", "large", "--keep-all"], {"kind": "large", "keep_all": True}),
    ],
)
def test_flags(args, expected):
    assert commandline.parse(Options, args) == Options(**expected)


@pytest.mark.parametrize(
    ("toml", "args", "expected"),
    [
        ("", [], {}),
        ("steps = 7\nrate = 2", [], {"steps": 7, "rate": 2.0}),
        ("drops = [10, 20]", [], {"drops": (10, 20)}),
        ("drops = []", [], {"drops": ()}),
        ("keep_all = true", [], {"keep_all": True}),
        ("keep_all = false", [], {"keep_all": False}),
        ("keep_all = true", ["--no-keep-all"], {"keep_all": False}),
        ('data = "--odd name ü"\nweights = "none"', [], {"data": "--odd name ü", "weights": "none"}),
        ("steps = 7\nrate = 2.5", ["--steps", "9"], {"steps": 9, "rate": 2.5}),
        ("drops = [10, 20]", ["--drops", "5"], {"drops": (5,)}),
    ],
)
@pytest.mark.parametrize("written", ["--config {}", "--config={}"])
def test_toml_lies_beneath_the_flags(tmp_path, toml, args, expected, written):
    path = tmp_path / "settings.toml"
    path.write_text(toml, encoding="utf-8")
    config = written.format(path).split(" ")
    for line in (config + args, args + config):
        assert commandline.parse(Options, line) == Options(**expected, config=str(path))


def test_a_resumed_folder_gives_its_settings(tmp_path):
    (tmp_path / "settings.toml").write_text("steps = 7\nrate = 2.5")
    found = commandline.parse(Options, ["--resume", str(tmp_path), "--rate", "3"])
    assert found == Options(steps=7, rate=3.0, resume=str(tmp_path))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["look", "--file", "a.jpg"], Look("a.jpg")),
        (["look", "--file", "a.jpg", "--twice"], Look("a.jpg", True)),
        (["leave"], Leave()),
    ],
)
def test_commands(args, expected):
    assert commandline.parse(COMMANDS, args) == expected


@pytest.mark.parametrize(
    ("commands", "args", "names"),
    [
        (Options, ["--stepz", "7"], ["--stepz"]),
        (Options, ["steps"], ["steps"]),
        (Options, ["--steps", "many"], ["--steps", "'many'"]),
        (Options, ["--steps", "1.5"], ["--steps", "'1.5'"]),
        (Options, ["--steps"], ["--steps"]),
        (Options, ["--rate", "fast"], ["--rate", "'fast'"]),
        (Options, ["--drops", "1", "later"], ["--drops", "'later'"]),
        (Options, ["--kind", "huge"], ["--kind", "'huge'", "'small'", "'large'"]),
        (COMMANDS, [], ["look", "leave"]),
        (COMMANDS, ["jump"], ["look", "leave"]),
        (COMMANDS, ["look"], ["--file"]),
        (COMMANDS, ["look", "--file", "a.jpg", "--thrice"], ["--thrice"]),
    ],
)
def test_a_wrong_command_line_is_one_line(capsys, commands, args, names):
    line = fails(capsys, lambda: commandline.parse(commands, args, prog="tfdet"))
    assert all(name in line for name in names)


@pytest.mark.parametrize(
    ("toml", "names"),
    [
        ("stepz = 7", ["stepz", "steps"]),
        ('steps = "many"', ["--steps", "'many'"]),
        ("steps = 1.5", ["--steps", "'1.5'"]),
        ("steps = [1, 2]", ["2"]),
        ("steps = true", ["--steps"]),
        ('rate = "fast"', ["--rate", "'fast'"]),
        ('drops = ["later"]', ["--drops", "'later'"]),
        ('keep_all = "yes"', ["yes"]),
        ('kind = "huge"', ["--kind", "'huge'", "'small'", "'large'"]),
        ("steps =", ["not TOML"]),
        ("steps: 7", ["line 1"]),
        (b"data = '\xff'", ["not TOML"]),
        (None, ["No such file or directory"]),
    ],
)
def test_a_wrong_toml_file_is_one_line_that_names_it(capsys, tmp_path, toml, names):
    path = tmp_path / "wrong.toml"
    if toml is not None:
        path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
    line = fails(capsys, lambda: commandline.parse(Options, ["--config", str(path)]))
    assert line.startswith(f"tfdet: error: {path}: ")
    assert all(name in line for name in names)


OPTION_TEXTS = (
    *("Something to be done", "Where the data are", "TOML file beneath", "Folder whose settings", "How many steps"),
    *("How fast", "When to slow down", "A file, or none", "How large", "Throw nothing away"),
)


@pytest.mark.parametrize(
    ("commands", "args", "texts"),
    [
        (
            Options,
            ["--help"],
            OPTION_TEXTS,
        ),
        (COMMANDS, ["--help"], ["look", Look.__doc__, "leave", Leave.__doc__]),
        (COMMANDS, ["look", "--help"], [Look.__doc__, "What to look at", "Look again"]),
    ],
)
def test_help_shows_every_text(capsys, commands, args, texts):
    with pytest.raises(SystemExit) as stop:
        commandline.parse(commands, args, prog="tfdet")
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert all(text in out for text in texts)
    assert err == ""


def test_run_gives_what_the_command_gives():
    assert commandline.run(lambda: 7) == 7


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("a.jpg: not an image"), "tfdet: error: a.jpg: not an image\n"),
        (KeyboardInterrupt(), "tfdet: error: interrupted\n"),
    ],
)
def test_run_turns_errors_raised_on_purpose_into_one_line(capsys, error, line):
    def command():
        raise error

    assert fails(capsys, lambda: commandline.run(command)) == line


def test_run_hides_no_bug():
    with pytest.raises(ZeroDivisionError):
        commandline.run(lambda: 1 / 0)
