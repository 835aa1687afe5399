"""Lightning 2's hooks and what becomes of each here; `python tests/house/lightning_hooks.py` prints the docs' table."""

from __future__ import annotations

from paddlelite_trainer import Callback, DataModule, Module
from paddlelite_trainer.callback import HOOKS as OF_CALLBACKS
from paddlelite_trainer.callback import NOT_CALLED
from paddlelite_trainer.data.module import HOOKS as OF_DATA
from paddlelite_trainer.module import HOOKS as OF_MODULES

_STAGES = ("train", "validation", "test", "predict")
_BOTH = {
    *(f"on_{stage}_{moment}" for stage in _STAGES for moment in ("start", "end", "epoch_start", "epoch_end")),
    *(f"on_{stage}_batch_{moment}" for stage in _STAGES for moment in ("start", "end")),
    *("on_fit_start", "on_fit_end", "setup", "teardown", "on_save_checkpoint", "on_load_checkpoint"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"),
}
_DATA = {
    *("prepare_data", "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
}
LIGHTNING: dict[str, tuple[type, frozenset[str], set[str]]] = {
    "LightningModule": (
        Module,
        OF_MODULES,
        {
            *_BOTH,
            *_DATA,
            *("training_step", "validation_step", "test_step", "predict_step", "backward"),
            *("configure_optimizers", "configure_callbacks", "configure_gradient_clipping", "configure_model"),
            *("configure_sharded_model", "optimizer_step", "optimizer_zero_grad", "lr_scheduler_step"),
            *(f"on_{stage}_model_{mode}" for stage in _STAGES[1:] for mode in ("eval", "train")),
            "on_validation_model_zero_grad",
        },
    ),
    "Callback": (
        Callback,
        OF_CALLBACKS,
        {*_BOTH, "on_exception", "on_sanity_check_start", "on_sanity_check_end", "state_dict", "load_state_dict"},
    ),
    "LightningDataModule": (
        DataModule,
        OF_DATA,
        {*_DATA, "setup", "teardown", "state_dict", "load_state_dict", "on_exception"},
    ),
}
"""{their class: (ours, the names that ours calls, the names that Lightning 2.5 calls)}"""


def outcome(base: type, called: frozenset[str], name: str) -> str:
    """ "called", or the remedy that its error names."""
    if name in called or (name in ("state_dict", "load_state_dict") and callable(getattr(base, name, None))):
        return "called"
    return f"refused: {NOT_CALLED[name]}"


def table() -> str:
    rows = ["| Lightning's | hook | here |", "|---|---|---|"]
    for theirs, (base, called, names) in LIGHTNING.items():
        same = sorted(name for name in names if outcome(base, called, name) == "called")
        rows.append(f"| {theirs} | {', '.join(f'`{name}`' for name in same)} | called |")
        refused: dict[str, list[str]] = {}
        for name in sorted(names - set(same)):
            refused.setdefault(outcome(base, called, name), []).append(name)
        rows += [f"| {theirs} | {', '.join(f'`{n}`' for n in group)} | {told} |" for told, group in refused.items()]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
