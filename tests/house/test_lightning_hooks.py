"""Each of Lightning's hooks is called here, or is an error with the remedy; the documents' table says which."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from lightning_hooks import LIGHTNING, outcome, table
from models import Classifier, make_batches, quiet_trainer

from paddlelite_trainer import Callback, DataModule
from paddlelite_trainer.callback import NOT_CALLED
from paddlelite_trainer.errors import ConfigurationError

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "migrating-from-lightning.md"
REFUSED = [
    (theirs, name)
    for theirs, (base, called, names) in LIGHTNING.items()
    for name in sorted(names | ({n for n in NOT_CALLED if n.startswith("on_")}))
    if name not in called and outcome(base, called, name) != "called"
]


def nothing(self: Any, *arguments: Any, **named: Any) -> None:
    return None


class Data(DataModule):
    def train_dataloader(self) -> Any:
        return make_batches(2)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.mark.parametrize(("theirs", "name"), REFUSED)
def test_a_hook_that_is_never_called_is_an_error_with_the_remedy(theirs: str, name: str) -> None:
    def fit(module: Any, data: Any, callbacks: list[Any]) -> None:
        quiet_trainer(callbacks=callbacks).fit(module, datamodule=data)

    with pytest.raises(ConfigurationError, match=rf"{name} is never called here: \w+"):
        if theirs == "LightningModule":
            fit(type("Mine", (Classifier,), {name: nothing})(), Data(), [])
        elif theirs == "Callback":
            fit(Classifier(), Data(), [type("Mine", (Callback,), {name: nothing})()])
        else:
            fit(Classifier(), type("Mine", (Data,), {name: nothing})(), [])


def test_a_callback_or_datamodule_may_have_a_method_that_is_a_module_s_hook_elsewhere() -> None:
    callback = type("Mine", (Callback,), {"backward": nothing, "optimizer_step": nothing})()
    quiet_trainer(callbacks=[callback]).fit(Classifier(), datamodule=type("More", (Data,), {"backward": nothing})())


def recording(kind: type, names: set[str], seen: set[str]) -> Any:
    def recorded(name: str, own: Any) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            seen.add(name)
            if name == "configure_callbacks":
                return []
            if name == "state_dict":
                return {"kept": 1}
            if name == "predict_step":
                return arguments[0]
            return own(self, *arguments)

        return call

    return type("Recording", (kind,), {name: recorded(name, getattr(kind, name)) for name in names})


@pytest.mark.parametrize("theirs", LIGHTNING)
def test_a_hook_that_the_table_calls_called_is_called(theirs: str, tmp_path: Path) -> None:
    base, called, names = LIGHTNING[theirs]
    names = {name for name in names if outcome(base, called, name) == "called"}
    seen: set[str] = set()
    kinds = {"LightningModule": Classifier, "Callback": Callback, "LightningDataModule": Data}
    mine = recording(kinds[theirs], names, seen)

    def runs(fails: bool = False, **settings: Any) -> None:
        class Fails(Callback):
            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                raise RuntimeError("planned")

        module = mine() if theirs == "LightningModule" else Classifier()
        given = [Fails()] if fails else []
        trainer = quiet_trainer(
            callbacks=[*given, mine()] if theirs == "Callback" else given,
            num_sanity_val_steps=1,
            enable_checkpointing=True,
            default_root_dir=tmp_path,
            run_name="run",
            gradient_clip_val=1.0,
            **settings,
        )
        data: Any = mine() if theirs == "LightningDataModule" else Data()
        own = {"datamodule": data}
        if theirs == "LightningModule":
            own = {}
            vars(module).update(
                {f"{name}_dataloader": recorded_loader(seen, name) for name in ("train", "val", "test", "predict")}
            )
        with contextlib.suppress(RuntimeError):
            trainer.fit(module, **own, ckpt_path="last")
            for stage in ("validate", "test", "predict"):
                getattr(trainer, stage)(module, **own)

    runs(max_epochs=1)
    runs(max_epochs=2)
    runs(max_epochs=3, fails=True)
    silent = {"lr_scheduler_step"}  # this module has no schedule; tests/fit/test_schedules.py sees it called
    assert names - seen <= silent


def recorded_loader(seen: set[str], name: str) -> Any:
    def loader() -> Any:
        seen.add(f"{name}_dataloader")
        return make_batches(2)

    return loader


def test_the_documents_have_the_table() -> None:
    assert table() in DOCUMENT.read_text(encoding="utf-8"), "python tests/house/lightning_hooks.py prints it"
