"""Random configurations, interrupted at random: a share in every run of the suite, thousands in the soak."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import CHOICES, differences, drawn, reduced, told

from paddlelite_trainer.progress import Progress


@pytest.mark.parametrize("seed", range(40))
def test_a_run_interrupted_at_random_ends_as_the_undisturbed_one(seed: int) -> None:
    choice, lives = drawn(seed)
    assert not differences(choice, lives), told(*reduced(choice, lives))


@pytest.mark.parametrize("data", ["a sampler without a length", "a sampler with a state, without a length"])
def test_the_pass_of_weight_averages_goes_on_from_what_a_sampler_remembers(data: str) -> None:
    choice = {name: options[0] for name, options in CHOICES.items()}
    choice.update(data=data, averages="swa", checkpoints="every other epoch", max_epochs="2")
    assert not differences(choice, [("on_fit_end", 1, "kill")])


@pytest.mark.parametrize("way", ["exception", "sys.exit", "Ctrl-C"])
def test_a_last_save_that_fails_is_made_and_ranked_when_the_run_is_started_again(way: str) -> None:
    choice = {name: options[0] for name, options in CHOICES.items()}
    choice.update(checkpoints="the best three of training", max_steps="9")
    assert not differences(choice, [("on_save_checkpoint", 5, way)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(1000, 3000, 250))
def test_two_thousand_runs_interrupted_at_random_end_as_the_undisturbed_ones(first: int) -> None:
    for seed in range(first, first + 250):
        choice, lives = drawn(seed)
        assert not differences(choice, lives), f"seed {seed}: {told(*reduced(choice, lives))}"


def test_the_fuzzer_finds_what_a_resume_forgets_and_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Progress.state_dict

    def forgets(self: Progress) -> dict[str, Any]:
        return {**whole(self), "global_step": 0}

    choice = {name: options[0] for name, options in CHOICES.items()}
    choice.update(clip="0.5", monitor="step", checkpoints="every step")
    lives = [("on_train_batch_start", 4, "exception"), ("on_fit_end", 7, "kill")]
    assert not differences(choice, lives)
    monkeypatch.setattr(Progress, "state_dict", forgets)
    assert "place" in differences(choice, lives)
    choice, lives = reduced(choice, lives)
    assert {name for name, value in choice.items() if value != CHOICES[name][0]} <= {"checkpoints"}
    assert lives == [("on_train_batch_start", 4, "exception")]
