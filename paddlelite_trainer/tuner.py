"""Tuner: finds a learning rate or a batch size by trying, and leaves everything as it found it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import paddle

from .callback import Callback
from .data.batch_size import batch_size_of
from .data.module import DataModule
from .errors import ConfigurationError, DataError, DeviceOutOfMemoryError, explains_unknown_arguments
from .lr_finder import LRFinderResult
from .machine.precision import Precision, is_out_of_memory
from .machine.rng import isolated_random_states
from .module import Module
from .optimizers import set_learning_rate
from .trainer import Trainer

Mode = Literal["exponential", "linear"]


class Tuner:
    """Tries settings on a model with a Trainer's settings; everything stays as it is found but for what it is to set.

        tuner = Tuner(trainer)
        found = tuner.lr_find(module, train_loader)
        module.hparams.lr = found.suggestion()
        trainer.fit(module, train_loader)

    The tries run in a Trainer of their own, without callbacks, loggers, validation and checkpoints. Afterwards, after
    an error too, the module has its weights, buffers, gradients, modes, frozen parameters and plain attributes again.
    What its methods do outside of it (files, a service) cannot be taken back.

    Args:
        trainer: whose device, precision, clipping and accumulation the tries have.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @explains_unknown_arguments({})
    def lr_find(
        self,
        model: Module,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        *,
        datamodule: DataModule | None = None,
        method: Literal["fit"] = "fit",
        min_lr: float = 1e-8,
        max_lr: float = 1.0,
        num_training: int = 100,
        mode: Mode = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = False,
        attr_name: str = "",
    ) -> LRFinderResult:
        """Train `num_training` steps while the learning rate rises from `min_lr` to `max_lr`, and return the losses.

        All optimizers get the same rate. It stops early where the smoothed loss exceeds `early_stop_threshold` times
        the best so far, or is not finite. (Smith 2015, arXiv:1506.01186, section 3.3; smoothing as in Lightning,
        0.98.)

        Args:
            model: the module, which is left as it is found.
            train_dataloaders: as `fit` takes it.
            val_dataloaders: accepted for Lightning's sake; a try does not validate.
            datamodule: in place of loaders.
            method: accepted for Lightning's sake; "fit" is the method.
            min_lr: the first rate.
            max_lr: the last rate.
            num_training: steps.
            mode: "exponential" or "linear" growth of the rate.
            early_stop_threshold: see above; None: go on to the end.
            update_attr: put the suggestion into the module.
            attr_name: of the module or its hparams; by default `lr` or `learning_rate`.

        Raises:
            ConfigurationError: a setting out of range; `update_attr`, and there is nothing to put it into.
        """
        _refuse_other_than_fit("lr_find", method)
        if isinstance(train_dataloaders, DataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        if not 0 < min_lr < max_lr:
            raise ConfigurationError(f"lr_find needs 0 < min_lr < max_lr, got min_lr={min_lr!r}, max_lr={max_lr!r}")
        if num_training < 2:
            raise ConfigurationError(f"lr_find(num_training=...) must be >= 2, got {num_training!r}")
        if mode not in ("exponential", "linear"):
            raise ConfigurationError(f"lr_find(mode=...) must be 'exponential' or 'linear', got {mode!r}")
        shares = [step / (num_training - 1) for step in range(num_training)]
        if mode == "linear":
            rates = [min_lr + share * (max_lr - min_lr) for share in shares]
        else:
            rates = [min_lr * (max_lr / min_lr) ** share for share in shares]
        target = _rate_of(model, attr_name, must=update_attr)
        sweep = _RateSweep(rates, early_stop_threshold)
        with _left_as_found(model, datamodule):
            self._short_trainer(num_training, [sweep]).fit(model, train_dataloaders, datamodule=datamodule)
        rate = sweep.result.suggestion()
        if rate is None:
            losses = sweep.result.losses
            finite = sum(map(math.isfinite, losses))
            self.trainer.print(
                f"Tuner: lr_find has nothing to suggest: {len(losses)} rates were tried, {finite} with a finite loss"
                ", of which the first 10 and the last are left out and 3 must be left"
                + ("" if target is None else f"; {target[2]} stays {_get(*target[:2])!r}")
            )
        elif target is not None:
            owner, name, shown = target
            if update_attr:
                _set(owner, name, rate)
                self.trainer.print(f"Tuner: {shown} is now {rate:.6g}")
            else:
                self.trainer.print(
                    f"Tuner: lr_find suggests {rate:.6g}: nothing is set; lr_find(update_attr=True) sets {shown}"
                )
        return sweep.result

    @explains_unknown_arguments({})
    def scale_batch_size(
        self,
        model: Module,
        train_dataloaders: DataModule | None = None,
        *,
        datamodule: DataModule | None = None,
        method: Literal["fit"] = "fit",
        mode: Literal["power", "binsearch"] = "power",
        steps_per_trial: int = 3,
        init_val: int = 2,
        max_trials: int = 25,
        batch_arg_name: str = "batch_size",
        margin: float = 0.0,
        max_val: int | None = None,
        update_attr: bool = False,
    ) -> int:
        """The largest batch size that trains `steps_per_trial` steps within the memory; `update_attr` sets it, too.

        It is tried by setting the argument and asking `train_dataloader()` anew, up to the last size that one batch of
        the training data fills.

        Args:
            model: the module, which is left as it is found.
            train_dataloaders: a datamodule, where the module has no `train_dataloader`.
            datamodule: the same.
            method: accepted for Lightning's sake; "fit" is the method.
            mode: "power" doubles until memory runs out; "binsearch" then narrows it down to the unit.
            steps_per_trial: steps that a size must train.
            init_val: the first size.
            max_trials: sizes that are tried at most.
            batch_arg_name: the argument, looked for in the datamodule, the module, and the hparams of either.
            margin: share of the size found that "binsearch" leaves free.
            max_val: the largest size to try.
            update_attr: set the size found.

        Raises:
            ConfigurationError: the argument is nowhere, train_dataloader does not read it, or `init_val` is too large.
        """
        if mode not in ("power", "binsearch"):
            raise ConfigurationError(f"scale_batch_size(mode=...) must be 'power' or 'binsearch', got {mode!r}")
        for name, value in (("steps_per_trial", steps_per_trial), ("init_val", init_val), ("max_trials", max_trials)):
            if value < 1:
                raise ConfigurationError(f"scale_batch_size({name}=...) must be >= 1, got {value!r}")
        _refuse_other_than_fit("scale_batch_size", method)
        _refuse_margin(margin, mode)
        if train_dataloaders is not None:
            datamodule = _datamodule_of(train_dataloaders)
        owner = _owner_of(batch_arg_name, model, datamodule)
        fits = partial(self._fits, model, datamodule, owner, batch_arg_name, steps_per_trial)
        found = max(1, int(_largest_that_fits(fits, mode, init_val, max_val, max_trials) * (1.0 - margin)))
        if update_attr:
            _set(owner, batch_arg_name, found)
            self.trainer.print(f"Tuner: {batch_arg_name} is now {found}")
        else:
            self.trainer.print(
                f"Tuner: scale_batch_size found {found}: nothing is set; scale_batch_size(update_attr=True) sets "
                f"{batch_arg_name}"
            )
        return found

    def _fits(
        self, model: Module, data: DataModule | None, owner: Any, name: str, steps: int, size: int, is_first: bool
    ) -> tuple[bool, bool]:
        """(Whether a batch size trains, whether a larger one would make a difference.)"""
        before = _get(owner, name)
        batches = _FirstBatch()
        try:
            with _left_as_found(model, data):
                _set(owner, name, size)
                self._short_trainer(steps, [batches]).fit(model, datamodule=data)
        except Exception as error:
            if not is_first and isinstance(error, DataError):  # drop_last, and a batch larger than the data
                return True, False
            if not (isinstance(error, DeviceOutOfMemoryError) or is_out_of_memory(error)):
                raise
            _free_memory()
            return False, False
        finally:
            _set(owner, name, before)
        if batches.size > size:
            raise ConfigurationError(
                f"train_dataloader() gave a batch of {batches.size} although {name} was {size}: it does not read it"
            )
        return True, batches.size == size

    def _short_trainer(self, steps: int, callbacks: Sequence[Callback]) -> Trainer:
        model_trainer = self.trainer
        short = _QuietTrainer(
            max_steps=steps,
            max_epochs=-1 if model_trainer.max_epochs is None else model_trainer.max_epochs,
            callbacks=[_Try(), *callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            limit_train_batches=model_trainer.limits["train"],
            gradient_clip_val=model_trainer.gradient_clip_val,
            gradient_clip_algorithm=model_trainer.gradient_clip_algorithm,
            accumulate_grad_batches=model_trainer.accumulate_grad_batches,
            accelerator=model_trainer.device.type,
            seed=model_trainer.seed,
        )
        short.device = model_trainer.device
        short.precision = Precision(model_trainer.precision.requested, device=model_trainer.device)
        return short


class _QuietTrainer(Trainer):
    """Of the user's it has `max_epochs`, while schedules are made by it; then the steps alone end it."""

    def print(self, *values: Any, **options: Any) -> None:
        pass

    def end_by_steps_alone(self) -> None:
        self.max_epochs = -1

    def _merge_callbacks(self, model: Module, stage: str) -> None:
        """A try is without callbacks, those that the module configures included."""


class _Try(Callback):
    """Lets a short run reach its steps, or end where it never would."""

    MOST_BATCHES_WITHOUT_STEP = 1000

    def __init__(self) -> None:
        self._batches_without_step, self._steps = 0, 0

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        assert isinstance(trainer, _QuietTrainer)
        trainer.end_by_steps_alone()
        for config in trainer.lr_scheduler_configs:  # without validation what they watch may never come
            vars(config).update(strict=False)

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._batches_without_step = 0 if trainer.global_step > self._steps else self._batches_without_step + 1
        self._steps = trainer.global_step
        if self._batches_without_step == self.MOST_BATCHES_WITHOUT_STEP:
            self._refuse(module)

    def on_train_epoch_end(self, trainer: Trainer, module: Module) -> None:
        if trainer.global_step == 0:
            self._refuse(module)

    def _refuse(self, module: Module) -> None:
        raise ConfigurationError(
            f"{type(module).__name__}.training_step takes no optimizer step, so there is nothing to try: in manual "
            "optimization call optimizer.step() of self.optimizers()"
        )


class _RateSweep(Callback):
    """Sets the rate of each step, and keeps the loss, smoothed and corrected for its start at nought."""

    def __init__(self, rates: list[float], early_stop_threshold: float | None) -> None:
        self.rates = rates
        self.threshold = early_stop_threshold
        self.result = LRFinderResult()
        self._average = 0.0
        self._best = math.inf
        self._losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        rate = self.rates[min(trainer.global_step, len(self.rates) - 1)]
        for optimizer in trainer.optimizers:
            set_learning_rate(optimizer, rate)  # at each batch: a scheduler may have stepped

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, paddle.Tensor):
            raise ConfigurationError(
                "lr_find needs to know the loss: "
                f"return it from {type(module).__name__}.training_step, in manual optimization too"
            )
        self._losses.append(float(loss.item()))
        if len(self.result.losses) == trainer.global_step:  # inside an accumulation window
            return
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        step = len(self.result.losses) + 1
        self._average = 0.98 * self._average + 0.02 * mean
        smoothed = self._average / (1 - 0.98**step)
        self.result.learning_rates.append(self.rates[step - 1])
        self.result.losses.append(smoothed)
        diverges = self.threshold is not None and step > 1 and smoothed > self.threshold * self._best
        if diverges or not math.isfinite(smoothed):
            trainer.stop("the loss diverges")
        self._best = min(self._best, smoothed)


class _FirstBatch(Callback):
    size = 0

    def on_train_batch_start(self, trainer: Trainer, module: Module, batch: Any, batch_idx: int) -> None:
        self.size = max(self.size, batch_size_of(batch))


# -- leaving no trace --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _left_as_found(model: Module, datamodule: DataModule | None) -> Iterator[None]:
    parameters = model.parameters()
    with paddle.no_grad():
        values = [(tensor, tensor.clone(), tensor.stop_gradient) for tensor in [*parameters, *model.buffers()]]
        gradients = [(one, None if one.grad is None else one.grad.clone()) for one in parameters]
    settings = [(one, dict(one.optimize_attr), one.regularizer) for one in parameters]
    layers = [_Contents(layer.__dict__) for layer in model.sublayers(include_self=True)]
    layers += [_Contents(part) for layer in list(layers) for part in layer.dicts()]
    others = [_Contents(model.hparams)]
    if datamodule is not None:
        others += [_Contents(datamodule.hparams), _Contents(datamodule.__dict__)]
    try:
        for one in parameters:
            one.clear_gradient(False)
        with isolated_random_states():
            yield
    finally:
        for contents in [*layers, *others]:
            contents.put_back()
        with paddle.no_grad():
            for tensor, value, stop_gradient in values:
                tensor.copy_(value.astype(tensor.dtype), True)  # a half precision has converted the weights
                tensor.stop_gradient = stop_gradient
        for one, gradient in gradients:
            one.clear_gradient(False)
            if gradient is not None:
                one.grad = gradient
        for one, optimize_attr, regularizer in settings:
            one.optimize_attr, one.regularizer = optimize_attr, regularizer


class _Contents:
    """What a dict held, to be put back into that very dict."""

    def __init__(self, owner: dict[str, Any]) -> None:
        self.owner, self.held = owner, dict(owner)

    def dicts(self) -> list[dict[str, Any]]:
        """A layer's own tables of parameters, sublayers and buffers."""
        return [self.held[name] for name in ("_parameters", "_sub_layers", "_buffers")]

    def put_back(self) -> None:
        self.owner.clear()
        self.owner.update(self.held)


def _largest_that_fits(
    fits: Callable[[int, bool], tuple[bool, bool]],
    mode: Literal["power", "binsearch"],
    init_val: int,
    max_val: int | None,
    max_trials: int,
) -> int:
    """Doubled from `init_val` on while it fits and grows; "binsearch" narrows the last doubling down to the unit."""
    size, good, trials = init_val, 0, 0
    while trials < max_trials:
        trials += 1
        trains, could_grow = fits(size, not good)
        if not trains:
            break
        if not could_grow:
            return good or size
        good = size
        if max_val is not None and size >= max_val:
            return good
        size = size * 2 if max_val is None else min(size * 2, max_val)
    else:
        return good
    if not good:
        raise ConfigurationError(
            f"a batch of init_val={init_val} already runs out of memory: "
            "try a smaller one, precision='16-mixed' or a smaller model"
        )
    too_large = size
    while mode == "binsearch" and too_large - good > 1 and trials < max_trials:
        trials += 1
        middle = (good + too_large) // 2
        good, too_large = (middle, too_large) if fits(middle, False)[0] else (good, middle)
    return good


def _refuse_other_than_fit(search: str, method: str) -> None:
    if method != "fit":
        raise ConfigurationError(f"{search}(method={method!r}): it tries by training, so method is 'fit' or left out")


def _refuse_margin(margin: float, mode: str) -> None:
    if not 0.0 <= margin < 1.0:
        raise ConfigurationError(f"scale_batch_size(margin=...) must be from 0.0 to below 1.0, got {margin!r}")
    if margin and mode != "binsearch":
        raise ConfigurationError(
            f"scale_batch_size(margin={margin}) is for mode='binsearch': 'power' leaves up to half of the memory free"
        )


def _datamodule_of(given: Any) -> DataModule:
    if isinstance(given, DataModule):
        return given
    raise ConfigurationError(
        f"scale_batch_size got a {type(given).__name__}: a loader has its batch size already. Leave it out, and let "
        "train_dataloader() of the module or a datamodule make one with the size that it reads."
    )


def _rate_of(model: Module, attr_name: str, *, must: bool) -> tuple[Any, str, str] | None:
    """(Who has the learning rate, its name there, how people write it); None where nobody has it and nobody must."""
    names = (attr_name,) if attr_name else ("lr", "learning_rate")
    for name in names:
        if hasattr(model, name):
            return model, name, name
        if name in model.hparams:
            return model.hparams, name, f"hparams.{name}"
    who = f"{type(model).__name__} nor its hparams has"
    if attr_name:
        raise ConfigurationError(f"lr_find(attr_name={attr_name!r}): neither {who} it")
    if must:
        raise ConfigurationError(
            f"lr_find(update_attr=True) found no 'lr' or 'learning_rate': neither {who} one; pass attr_name, or put "
            "found.suggestion() where it belongs"
        )
    return None


def _owner_of(name: str, model: Module, datamodule: DataModule | None) -> Any:
    own = None if datamodule is None else datamodule.hparams
    for owner in (datamodule, own, model, model.hparams):
        if owner is not None and (name in owner if isinstance(owner, dict) else hasattr(owner, name)):
            return owner
    raise ConfigurationError(
        f"scale_batch_size found no {name!r}: neither the datamodule nor {type(model).__name__} nor their hparams have "
        "it. Keep it there, and read it in train_dataloader(); or pass batch_arg_name."
    )


def _get(owner: Any, name: str) -> Any:
    return owner[name] if isinstance(owner, dict) else getattr(owner, name)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


def _free_memory() -> None:
    import gc

    gc.collect()
    if paddle.is_compiled_with_cuda():
        paddle.device.cuda.empty_cache()
