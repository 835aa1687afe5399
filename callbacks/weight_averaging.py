"""Stochastic weight averaging: the mean of the weights of the last epochs, at a high, constant learning rate."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import paddle

from paddlelite_trainer import Module, Trainer
from paddlelite_trainer.callback import overridden
from paddlelite_trainer.errors import ConfigurationError, did_you_mean, explains_unknown_arguments
from paddlelite_trainer.layers import batch_norms, momentum, set_momentum
from paddlelite_trainer.optimizers import set_learning_rate

from .averaged_weights import AveragedWeights


class StochasticWeightAveraging(AveragedWeights):
    """Averages the weights of the epochs from `swa_epoch_start` on; when fit ends, the module holds the average.

        Trainer(max_epochs=100, callbacks=[StochasticWeightAveraging(swa_lrs=0.01)])

    From that epoch on the learning rate goes from where it is to `swa_lrs` within `annealing_epochs` and stays there;
    whatever schedulers do has no effect any more. At fit's end the running statistics of BatchNorm are computed anew
    for the average, in one pass over the training data, through `predict_step`. (Izmailov et al. 2018,
    arXiv:1803.05407, algorithm 1.)

    Checkpoints hold the live weights in `model.pdparams` and the average so far in `swa.pdparams`. After fit,
    `trainer.save_checkpoint("swa")` keeps the final average as a model.

    Args:
        annealing_epochs: epochs within which the rate goes to `swa_lrs`.
        swa_lrs: the learning rate, or one for each optimizer.
        swa_epoch_start: an epoch's index, or the share of max_epochs after which averaging begins.
        annealing_strategy: "cos" or "linear".
        evaluate_with_average: let validation run with the average so far, whose BatchNorm statistics are then averages
            too.

    Raises:
        ConfigurationError: an argument is out of its range.
    """

    @explains_unknown_arguments(
        {
            "avg_fn": "the mean is taken; for another one derive from AveragedWeights",
            "device": "the averages are where the weights are",
        }
    )
    def __init__(
        self,
        swa_lrs: float | Sequence[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        *,
        evaluate_with_average: bool = False,
    ) -> None:
        rates = list(swa_lrs) if isinstance(swa_lrs, (Sequence, np.ndarray)) else [float(swa_lrs)]
        if not rates or any(rate <= 0 for rate in rates):
            raise ConfigurationError(f"StochasticWeightAveraging(swa_lrs=...) must be > 0, got {swa_lrs!r}")
        if swa_epoch_start < 0 or (isinstance(swa_epoch_start, float) and swa_epoch_start > 1):
            raise ConfigurationError(
                "StochasticWeightAveraging(swa_epoch_start=...) must be an epoch (int >= 0) or a share of max_epochs "
                f"(float from 0.0 to 1.0), got {swa_epoch_start!r}"
            )
        if annealing_epochs < 0:
            raise ConfigurationError(
                f"StochasticWeightAveraging(annealing_epochs=...) must be >= 0, got {annealing_epochs!r}"
            )
        if annealing_strategy not in ("cos", "linear"):
            raise ConfigurationError(
                "StochasticWeightAveraging(annealing_strategy=...) must be 'cos' or 'linear', got "
                f"{annealing_strategy!r}.{did_you_mean(str(annealing_strategy), ('cos', 'linear'))}"
            )
        super().__init__("swa.pdparams", evaluate_with_average=evaluate_with_average)
        self.swa_lrs = rates
        self.swa_epoch_start = swa_epoch_start
        self.annealing_epochs = annealing_epochs
        self.annealing_strategy = annealing_strategy
        self._epochs_averaged = self._epochs_in_averages = 0
        self._has_seen_a_batch = False
        self._rates_before: list[float] = []  # of each optimizer, when averaging began

    @property
    def n_averaged(self) -> int:
        """Epochs in the average."""
        return self._epochs_averaged

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        super().setup(trainer, module, stage)
        if stage != "fit":
            return
        self._epochs_averaged, self._rates_before, self._has_seen_a_batch = 0, [], False
        self._epochs_in_averages = 0
        if isinstance(self.swa_epoch_start, float) and (trainer.max_epochs is None or trainer.max_epochs < 0):
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_epoch_start={self.swa_epoch_start}) is a share of max_epochs, and the "
                "Trainer has none: give the epoch as an int"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        super().on_fit_start(trainer, module)
        if len(self.swa_lrs) not in (1, len(trainer.optimizers)):
            raise ConfigurationError(
                f"StochasticWeightAveraging(swa_lrs=...) has {len(self.swa_lrs)} learning rates for "
                f"{len(trainer.optimizers)} optimizers"
            )

        first, last = self.first_epoch(trainer), trainer.max_epochs
        if last is not None and 0 <= last <= first and not trainer.fast_dev_run:
            warnings.warn(
                f"StochasticWeightAveraging(swa_epoch_start={self.swa_epoch_start}) averages nothing: it begins with "
                f"epoch {first}, counted from 0, and the Trainer has max_epochs={last}",
                stacklevel=2,
            )

    def first_epoch(self, trainer: Trainer) -> int:
        """The index of the first epoch whose weights are averaged."""
        start = self.swa_epoch_start
        return start if isinstance(start, int) else int(start * (trainer.max_epochs or 0))

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.current_epoch >= self.first_epoch(trainer) and not self._rates_before:
            self._rates_before = [float(optimizer.get_lr()) for optimizer in trainer.optimizers]
        self._set_rates(trainer)

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        if not self._has_seen_a_batch:
            self._has_seen_a_batch = True
            _refuse_what_predict_step_cannot_take(module, batch)
        self._set_rates(trainer)  # each batch: a scheduler may have stepped

    @property
    def sets_learning_rates(self) -> bool:
        return bool(self._rates_before)

    def _set_rates(self, trainer: Trainer) -> None:
        if not self._rates_before:
            return
        done = trainer.current_epoch - self.first_epoch(trainer)
        targets = self.swa_lrs if len(self.swa_lrs) > 1 else self.swa_lrs * len(trainer.optimizers)
        for optimizer, before, target in zip(trainer.optimizers, self._rates_before, targets):
            set_learning_rate(optimizer, self._rate(done, before, target))

    def _rate(self, epochs: int, before: float, target: float) -> float:
        if epochs >= self.annealing_epochs:
            return target
        share = epochs / self.annealing_epochs
        if self.annealing_strategy == "cos":
            share = (1 - math.cos(math.pi * share)) / 2
        return before + share * (target - before)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if not self._rates_before:
            return
        # Where this hook comes again, after an exception in another's, the averages hold the epoch already.
        if self._epochs_averaged == self._epochs_in_averages:
            if not self._epochs_averaged:
                self.begin(trainer, module)
            else:
                self.move(trainer, module, share=1.0 / (self._epochs_averaged + 1))
        self._epochs_averaged += 1
        self._epochs_in_averages = self._epochs_averaged

    def on_save_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, module, checkpoint)
        checkpoint["swa_epochs_in_averages"] = self._epochs_in_averages

    def on_load_checkpoint(self, trainer: Trainer, module: Module, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, module, checkpoint)
        if "swa_epochs_in_averages" in checkpoint:  # an earlier version did not save it
            self._epochs_in_averages = checkpoint["swa_epochs_in_averages"]

    def on_train_end(self, trainer: Trainer, module: Module) -> None:
        if not self.averages or trainer.signals.received is not None:  # a run cut short goes on with its live weights
            return
        self.let_averages_be_weights(trainer, module)
        update_batch_norm(module, trainer.train_batches())
        for name, parameter in module.named_parameters():  # the average's file gets the new statistics too
            if name.endswith(("._mean", "._variance")) and name not in trainer.cut_weights:
                self.averages[name].copy_(parameter, True)

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        super().on_already_over(trainer, module)
        self.on_train_end(trainer, module)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_averaged": self._epochs_averaged, "rates_before": self._rates_before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epochs_averaged = state_dict["epochs_averaged"]
        self._rates_before = list(state_dict["rates_before"])
        self._epochs_in_averages = max(self._epochs_in_averages, self._epochs_averaged)


def _refuse_what_predict_step_cannot_take(module: Module, batch: Any) -> None:
    """Raise ConfigurationError where the statistics could not be computed at fit's end; better now than then."""
    if not _norms_with_statistics(module) or overridden(module, "predict_step", Module) is not None:
        return
    given = batch[0] if isinstance(batch, (list, tuple)) and batch else batch
    problem = None
    if type(module).forward in (paddle.nn.Layer.forward, Module.forward):
        problem = "has no forward"
    elif not isinstance(given, paddle.Tensor):
        problem = f"would be given a {type(given).__name__}"
    else:
        try:
            inspect.signature(module.forward).bind(given)
        except TypeError as error:
            problem = f"cannot be called with the batch's first entry ({error})"
    if problem is not None:
        raise ConfigurationError(
            "StochasticWeightAveraging computes BatchNorm's statistics anew at fit's end by predict_step, and "
            f"{type(module).__name__} {problem}: write predict_step(batch, batch_idx), which is given a training batch"
        )


def _norms_with_statistics(module: Module) -> list[Any]:
    return [layer for layer in batch_norms(module) if momentum(layer) is not None]


def update_batch_norm(module: Module, batches: Any) -> None:
    """Compute every BatchNorm's running statistics anew: the plain mean over these batches, through `predict_step`."""
    norms = _norms_with_statistics(module)
    if not norms:
        return
    momenta: list[Any] = [momentum(norm) for norm in norms]
    modes = [(layer, layer.training) for layer in module.sublayers(include_self=True)]
    module.eval()
    for norm in norms:
        norm.train()
    try:
        with paddle.no_grad():
            for count, batch in enumerate(batches):
                for norm in norms:
                    # Paddle: running = momentum * running + (1 - momentum) * batch's; this makes it the mean so far.
                    set_momentum(norm, count / (count + 1))
                module.predict_step(batch, count)
    finally:
        for norm, before in zip(norms, momenta):
            set_momentum(norm, before)
        for layer, mode in modes:
            layer.training = mode
