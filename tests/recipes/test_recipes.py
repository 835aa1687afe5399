"""Each recipe of examples/ reaches what its page says, and ends with the same bits where it was killed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from recipes.recipe_runs import EXAMPLES, Recipe, bits_of, kill, result_of, run

RECIPES = [
    Recipe("click_through", "val_auc", least=0.78),
    Recipe("contrastive", "val_acc", least=0.91, killed_after=3),
    Recipe("cross_validation", "ensemble_test_acc", least=0.95, killed_after=2, killed_in="fold_2"),
    Recipe("distillation", "student_test_acc", least=0.94, killed_after=3, killed_in="student"),
    Recipe("finetuning", "tuned_val_acc", least=0.82, killed_after=3, killed_in="tuned"),
    Recipe("gan", "val_distance", most=2.5, killed_after=3),
    Recipe("image_classification", "test_acc", least=0.96, killed_after=3),
    Recipe("keyword_spotting", "val_acc", least=0.85, killed_after=3),
    Recipe("language_model", "lora_loss", most=2.7, killed_after=2, killed_in="lora"),
    Recipe("object_detection", "val_map", least=0.85, killed_after=3),
    Recipe("physics_informed", "lbfgs_error", most=0.01, killed_after=2, killed_in="lbfgs"),
    Recipe("pretraining", "pretrained_mae", most=0.08, killed_after=3, killed_in="pretrained"),
    Recipe("replay_buffer", "won", least=0.8, killed_after=5),
    Recipe("search", "best_val_acc", least=0.95, killed_after=2, killed_in="trial_004"),
    Recipe("segmentation", "val_miou", least=0.75, killed_after=2),
    Recipe("text_classification", "val_acc", least=0.55, killed_after=3),
    Recipe("text_detection", "val_f_score", least=0.9, killed_after=3),
    Recipe("text_recognition", "val_line_acc", least=0.75, killed_after=4),
    Recipe("time_series", "test_mae", most=170.0, killed_after=4),
    Recipe("token_labelling", "val_acc", least=0.95, killed_after=2),
]
FOLDERS = sorted(path.parent.name for path in EXAMPLES.glob("*/train.py"))


# The quickest stand for the others in every run of the tests.
QUICK = ("time_series",)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(recipe, id=recipe.folder, marks=() if recipe.folder in QUICK else pytest.mark.recipes)
        for recipe in RECIPES
    ],
)
def test_a_recipe_reaches_its_quality_and_the_same_bits_when_it_is_killed(recipe: Recipe, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = run(recipe, whole)
    reached = result_of(said, recipe.metric)
    assert recipe.is_reached(reached), f"{recipe.metric} is {reached}"
    kill(recipe, killed)
    again = run(recipe, killed)
    assert "going on with" in again
    assert bits_of(whole) and bits_of(killed) == bits_of(whole)
    assert result_of(again, recipe.metric) == reached


def test_every_recipe_is_tried() -> None:
    assert sorted(recipe.folder for recipe in RECIPES) == FOLDERS


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_recipe_is_short_and_has_a_page_and_a_picture(folder: str) -> None:
    lines = (EXAMPLES / folder / "train.py").read_text().splitlines()
    assert 60 <= len(lines) <= 150
    page = (EXAMPLES / folder / "README.md").read_text()
    assert f"python examples/{folder}/train.py" in page
    assert "![" in page and len(page.splitlines()) <= 60
    assert (EXAMPLES / folder / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.folder)
def test_a_recipe_s_page_states_what_is_asserted(recipe: Recipe) -> None:
    page = (EXAMPLES / recipe.folder / "README.md").read_text()
    bound = recipe.least if recipe.least is not None else recipe.most
    assert re.search(rf"`{re.escape(recipe.metric)}`.*\b{re.escape(str(bound))}\b", page)
