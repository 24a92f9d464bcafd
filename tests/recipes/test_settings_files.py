"""The settings of real runs, recipes/<name>/*.toml."""

import importlib
import re
from pathlib import Path

import pytest

from tfdet import commandline

FILES = sorted(Path(__file__).parents[2].glob("recipes/*/*.toml"))


def test_there_are_some():
    assert len(FILES) >= 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_the_recipe_of_the_folder_understands_it(file):
    recipe = importlib.import_module(f"tfdet.recipes.{file.parent.name}")
    data = re.search(r"--data (\S+)", file.read_text()).group(1)
    settings = recipe.resolve(commandline.parse(recipe.Settings, ["--config", str(file), "--data", data]))
    assert None not in (settings.batch_size, settings.learning_rate, settings.drops, settings.backbone)
    assert (settings.steps is None) != (settings.epochs is None)
    assert file.name in file.read_text().splitlines()[1], "the second line is the command"
