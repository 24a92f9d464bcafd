"""What the recipes and `python -m tfdet` share: flags from dataclasses, and errors in one line."""

import contextlib
import dataclasses
import io
import re
import sys
import tomllib

import tyro

from tfdet.errors import TfdetError


def parse(commands, args=None, prog=None):
    """Fill a dataclass, or the chosen one of {name: dataclass}, from the command line.

    A dataclass with a `config` field also reads that TOML file, beneath the flags, and one with a `resume` field the
    settings in that run folder. An unknown flag or key, or a value of the wrong type, ends the program with one line
    and status 2.
    """
    args = list(sys.argv[1:] if args is None else args)
    if isinstance(commands, dict):
        return _in_one_line(tyro.extras.subcommand_cli_from_dict, commands, prog=prog, args=args)
    file = _settings_file(args)
    defaults = _from_toml(commands, file) if file else commands()
    return _in_one_line(tyro.cli, commands, prog=prog, args=args, default=defaults)


def run(command):
    """Call `command()`; an error that tfdet raises on purpose ends the program with one line and status 2."""
    try:
        return command()
    except TfdetError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")


def fail(message):
    """End the program: one line on stderr, status 2."""
    print(f"tfdet: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _settings_file(args):
    """The TOML file that gives the flags' defaults, so that it has to be read before they are; or None."""
    if folder := _value_of("--resume", args):
        return f"{folder}/settings.toml"
    return _value_of("--config", args)


def _value_of(flag, args):
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith(f"{flag}="):
            return arg.removeprefix(f"{flag}=")
    return None


def _from_toml(settings_class, path):
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{path}: not TOML: {error}")
    fields = {field.name for field in dataclasses.fields(settings_class)}
    if unknown := sorted(set(values) - fields):
        fail(f"{path}: unknown setting {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
    return from_values(settings_class, values, f"{path}: ")


def from_values(settings_class, values, where=""):
    """Fill a dataclass with values as those of a TOML file, {field: value}; `where`: what a complaint begins with."""
    return _in_one_line(tyro.cli, settings_class, args=list(_flags(values)), where=where)


def _flags(values):
    """The values of a TOML file as flags, so that tyro checks both alike."""
    for name, value in values.items():
        if isinstance(value, bool):
            yield f"--{name}" if value else f"--no-{name}"
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        else:
            yield f"--{name}={value}"


def _in_one_line(read, *args, where="", **kwargs):
    """Call a function of tyro; what it complains of ends the program with one line and status 2."""
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return read(*args, **kwargs)
    except SystemExit as stop:
        if stop.code:
            fail(where + _one_line(messages.getvalue()))
        raise


def _one_line(panel):
    """tyro's framed message without its frame, its details and its closing advice."""
    text = re.split(r"╰|Got errors:|Argument helptext:|For full helptext", panel)[0]
    lines = [line.strip(" ─") for line in re.sub(r"[╭╮│]", " ", text).splitlines()]
    title, *rest = [line for line in lines if line] or ["cannot read the command line"]
    rest = " ".join(rest)
    return rest if rest.startswith(title) else f"{title}: {rest}"
