"""Trainer(strategy=): words of Lightning and Paddle, what contradicts what, and what cannot be here."""

from __future__ import annotations

from typing import Any

import paddle
import pytest
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Strategy, Trainer
from paddlelite_trainer.errors import ConfigurationError, ConfigurationTypeError
from paddlelite_trainer.machine.strategy import refuse_what_paddle_cannot, strategy_of


def asked(strategy: Any = "auto", **given: Any) -> Strategy:
    settings = {"num_nodes": None, "sync_batchnorm": False, "find_unused_parameters": None, "precision": "32-true"}
    return strategy_of(strategy, **{**settings, **given})


@pytest.mark.parametrize(
    ("word", "name", "finds_unused"),
    [
        ("auto", "auto", True),
        ("ddp", "ddp", True),
        ("DDP", "ddp", True),
        ("ddp_find_unused_parameters_true", "ddp", True),
        ("ddp_find_unused_parameters_false", "ddp", False),
        ("os", "sharding_stage1", False),
        ("os_g", "sharding_stage2", False),
        ("p_g_os", "sharding_stage3", False),
        ("fsdp", "sharding_stage3", False),
        ("deepspeed_stage_2", "sharding_stage2", False),
        ("zero1", "sharding_stage1", False),
        ("sharding-stage3", "sharding_stage3", False),
    ],
)
def test_words_of_lightning_and_paddle_are_understood(word: str, name: str, finds_unused: bool) -> None:
    assert (asked(word).name, asked(word).finds_unused) == (name, finds_unused)


def test_on_one_process_there_is_nothing_to_spread() -> None:
    trainer = quiet_trainer(strategy="sharding_stage2", accelerator="cpu")
    assert (str(trainer.strategy), trainer.strategy.stage, trainer.world_size) == ("single_device", 0, 1)
    trainer.fit(Classifier(), make_batches(2))
    assert trainer.global_step == 2
    assert asked("auto").on(2).name == "ddp"


class DDPStrategy:
    """As Lightning's is called."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "sharding_stage_2"}, ["or 'sharding_stage3', or", "Did you mean 'sharding_stage2'?"]),
        ({"strategy": "dp"}, ["use 'ddp'"]),
        ({"strategy": "deepspeed_stage_3_offload"}, ["use 'sharding_stage3'"]),
        ({"strategy": DDPStrategy()}, ["For a DDPStrategy: strategy='ddp'"]),
        ({"strategy": 2}, ["must be 'auto', 'ddp'", "got 2 (int)"]),
        ({"num_nodes": 0}, ["num_nodes=...) must be an int >= 1"]),
        ({"num_nodes": 2}, ["--nnodes 2", "--rank 0 to 1"]),
        ({"sync_batchnorm": "yes"}, ["sync_batchnorm=...) must be True or False"]),
        ({"find_unused_parameters": 1}, ["must be True, False or None"]),
        (
            {"strategy": "ddp_find_unused_parameters_true", "find_unused_parameters": False},
            ["contradicts find_unused_parameters=False"],
        ),
        ({"strategy": "fsdp", "find_unused_parameters": True}, ["cannot be with strategy='sharding_stage3'"]),
        ({"strategy": Strategy("ddp", keep_cut=True)}, ["keep_cut=True) is for 'sharding_stage3'", "'ddp' cuts no"]),
        ({"strategy": "os_g", "precision": "64-true"}, ["cannot be with precision='64-true'"]),
        ({"strategy": "os_g", "devices": 2, "accelerator": "cpu"}, ["does not shard on the CPU", "Use strategy='ddp'"]),
    ],
)
def test_what_cannot_be_is_one_sentence_before_anything_starts(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ConfigurationError, ConfigurationTypeError)) as raised:
        Trainer(**arguments)
    for word in words:
        assert word in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_this_paddle_cannot_shard_is_refused() -> None:
    refuse_what_paddle_cannot(asked("os"), "gpu", 8)
    if paddle.__version__.startswith("2."):
        with pytest.raises(ConfigurationError, match=r"only supports gpu and xpu\. Use strategy='ddp', or Paddle 3"):
            refuse_what_paddle_cannot(asked("os"), "npu", 8)
    else:
        refuse_what_paddle_cannot(asked("os"), "npu", 8)


@pytest.mark.parametrize(
    ("environment", "arguments", "words"),
    [
        ({"PADDLE_LOCAL_SIZE": "2"}, {"devices": 4}, "devices=4 are 4, and this job was started with 2 processes"),
        ({"PADDLE_NNODES": "1"}, {"num_nodes": 2}, "num_nodes=2, and this job was started with --nnodes 1"),
    ],
)
def test_a_job_that_was_started_otherwise_is_told(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: dict[str, Any], words: str
) -> None:
    for name, value in {"PADDLE_TRAINER_ID": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=words):
        Trainer(accelerator="cpu", **arguments)
