"""Freezes parts of a model and unfreezes them during the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import paddle

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import ConfigurationError, did_you_mean, explains_unknown_arguments
from paddlelite_trainer.layers import batch_norms, running_statistics
from paddlelite_trainer.optimizers import parameters_of


class BaseFinetuning(Callback):
    """Override `freeze_before_training` (before configure_optimizers) and `finetune_function` (as an epoch starts).

        class Thaw(BaseFinetuning):
            def freeze_before_training(self, module):
                self.freeze(module.encoder)

            def finetune_function(self, trainer, module, epoch):
                if epoch == 5:
                    self.unfreeze_and_train(trainer, module.encoder, learning_rate_ratio=0.1)

    What is frozen and which parameters the optimizers have is part of a checkpoint: a resumed run finds both as they
    were.
    """

    def __init__(self) -> None:
        self._ratios: dict[str, float] = {}  # {parameter's name: its rate as a multiple of its optimizer's}

    def freeze_before_training(self, module: Module) -> None:
        """Freeze what shall not learn yet; `configure_optimizers` sees it."""

    def finetune_function(self, trainer: Trainer, module: Module, epoch: int) -> None:
        """Called at the start of each epoch; not again where a run resumes inside one."""

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self._ratios.clear()
            self._refuse_a_plan_for_other_arguments()
            self.freeze_before_training(module)

    def _refuse_a_plan_for_other_arguments(self) -> None:
        names = list(inspect.signature(self.finetune_function).parameters)
        if "optimizer" in names or names[:1] == ["pl_module"]:
            raise ConfigurationError(
                f"{type(self).__name__}.finetune_function({', '.join(names)}) takes what Lightning gives it; here it "
                "is given (trainer, module, epoch): call self.unfreeze_and_train(trainer, layer) in it"
            )

    def on_fit_start(self, trainer: Trainer, module: Module) -> None:
        for name, parameter in module.named_parameters():
            if name in self._ratios:
                parameter.optimize_attr["learning_rate"] = self._ratios[name]

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        self.finetune_function(trainer, module, trainer.current_epoch)

    # -- for subclasses ------------------------------------------------------------------------------------------------
    @staticmethod
    def freezable(layer: paddle.nn.Layer, *, train_bn: bool = False) -> list[Any]:
        """The layer's parameters that can learn; with `train_bn` without those of BatchNorm layers."""
        norms = batch_norms(layer)
        left_out = {id(value) for norm in norms for value in running_statistics(norm).values()}
        if train_bn:
            left_out |= {id(parameter) for norm in norms for parameter in norm.parameters()}
        return [parameter for parameter in layer.parameters() if id(parameter) not in left_out]

    @staticmethod
    def freeze(layer: paddle.nn.Layer, *, train_bn: bool = False) -> None:
        """Stop the layer's parameters from learning; with `train_bn` those of BatchNorm layers learn on."""
        for parameter in BaseFinetuning.freezable(layer, train_bn=train_bn):
            parameter.stop_gradient = True

    def unfreeze_and_train(
        self,
        trainer: Trainer,
        layer_or_parameters: paddle.nn.Layer | Iterable[Any],
        *,
        optimizer_index: int = 0,
        learning_rate_ratio: float = 1.0,
    ) -> None:
        """Let these learn at `learning_rate_ratio` times an optimizer's rate; what no optimizer has joins it."""
        is_layer = isinstance(layer_or_parameters, paddle.nn.Layer)
        parameters = BaseFinetuning.freezable(layer_or_parameters) if is_layer else list(layer_or_parameters)
        for parameter in parameters:
            parameter.stop_gradient = False
        self.set_learning_rate_ratio(trainer, parameters, learning_rate_ratio)
        trained = {id(parameter) for optimizer in trainer.optimizers for parameter in parameters_of(optimizer)}
        missing = [parameter for parameter in parameters if id(parameter) not in trained]
        if missing:
            trainer.add_param_group(missing, optimizer_index=optimizer_index, learning_rate=learning_rate_ratio)

    def set_learning_rate_ratio(self, trainer: Trainer, parameters: Iterable[Any], ratio: float) -> None:
        """Let these parameters learn at `ratio` times their optimizer's rate from the next step on."""
        for parameter in parameters:
            parameter.optimize_attr["learning_rate"] = ratio
            self._ratios[trainer.parameter_names[parameter.name]] = ratio

    def state_dict(self) -> dict[str, Any]:
        return {"learning_rate_ratios": dict(self._ratios)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._ratios = dict(state_dict["learning_rate_ratios"])


class BackboneFinetuning(BaseFinetuning):
    """Trains the rest of the model alone, and from an epoch on the backbone too, at a rate that grows to the others'.

        Trainer(callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=5)])

    `module.<backbone>` is frozen before training. At `unfreeze_backbone_at_epoch` it learns at
    `backbone_initial_ratio_lr` times the optimizer's rate, and each epoch the ratio is multiplied by `ratio_growth`, 2,
    or by what `lambda_func` says of the epoch, up to 1 (with `should_align=False`, without end). Frozen parameters that
    `configure_optimizers` leaves out join the first optimizer. With `train_bn`, BatchNorm layers of the backbone are
    never frozen; without it they keep their statistics, too, until the backbone is unfrozen. Its rate is logged as
    `lr-<backbone>` as each epoch starts.

    Args:
        unfreeze_backbone_at_epoch: the epoch, from 0, as which starts the backbone begins to learn.
        lambda_func: what the ratio is multiplied by as an epoch starts; None: `ratio_growth`.
        backbone_initial_ratio_lr: the backbone's first rate, as a share of the optimizer's.
        ratio_growth: what the ratio is multiplied by at each epoch; None: 2, or what `lambda_func` says.
        backbone: the attribute of the module that is the backbone.
        should_align: the ratio grows up to 1; False: without end.
        train_bn: whether BatchNorm layers of the backbone learn from the beginning.

    Raises:
        ConfigurationError: an argument is out of its range, or both lambda_func and ratio_growth are given.
    """

    @explains_unknown_arguments(
        {
            "backbone_initial_lr": "backbone_initial_ratio_lr is a share of the optimizer's rate",
            "initial_denom_lr": "unfreeze_and_train takes a learning_rate_ratio",
            "verbose": "LRMonitor logs the rates",
            "rounding": "LRMonitor logs the rates",
        }
    )
    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] | None = None,
        backbone_initial_ratio_lr: float = 0.1,
        *,
        ratio_growth: float | None = None,
        backbone: str = "backbone",
        should_align: bool = True,
        train_bn: bool = True,
    ) -> None:
        if unfreeze_backbone_at_epoch < 0:
            raise ConfigurationError(
                f"BackboneFinetuning(unfreeze_backbone_at_epoch=...) must be >= 0, got {unfreeze_backbone_at_epoch!r}"
            )
        if lambda_func is not None and ratio_growth is not None:
            raise ConfigurationError("BackboneFinetuning takes one of lambda_func and ratio_growth, got both")
        if lambda_func is not None and not callable(lambda_func):
            raise ConfigurationError(
                f"BackboneFinetuning(lambda_func=...) must be a function of the epoch, got {lambda_func!r}"
            )
        for name, value in (("backbone_initial_ratio_lr", backbone_initial_ratio_lr), ("ratio_growth", ratio_growth)):
            if value is not None and value <= 0:
                raise ConfigurationError(f"BackboneFinetuning({name}=...) must be > 0, got {value!r}")
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.lambda_func = lambda_func
        self.ratio_growth = 2.0 if ratio_growth is None else ratio_growth
        self.backbone = backbone
        self.should_align = should_align
        self.train_bn = train_bn

    def learning_rate_ratio(self, epoch: int) -> float:
        """The backbone's learning rate in this epoch, as a multiple of the optimizer's."""
        ratio = self.backbone_initial_ratio_lr
        for earlier in range(self.unfreeze_backbone_at_epoch + 1, epoch + 1):
            # Lightning hands it the epoch after the one that begins.
            ratio *= self.ratio_growth if self.lambda_func is None else self.lambda_func(earlier + 1)
        return min(1.0, ratio) if self.should_align else ratio

    def freeze_before_training(self, module: Module) -> None:
        self.freeze(self._backbone(module), train_bn=self.train_bn)

    def on_train_start(self, trainer: Trainer, module: Module) -> None:
        if trainer.current_epoch < self.unfreeze_backbone_at_epoch and not self.train_bn:
            for norm in batch_norms(self._backbone(module)):
                norm.eval()  # fit has put the whole module into train mode

    def finetune_function(self, trainer: Trainer, module: Module, epoch: int) -> None:
        if epoch == self.unfreeze_backbone_at_epoch:
            backbone = self._backbone(module)
            for norm in batch_norms(backbone):
                norm.train()
            self.unfreeze_and_train(trainer, self._late(module), learning_rate_ratio=self.learning_rate_ratio(epoch))
        elif epoch > self.unfreeze_backbone_at_epoch:
            self.set_learning_rate_ratio(trainer, self._late(module), self.learning_rate_ratio(epoch))

    def on_train_epoch_start(self, trainer: Trainer, module: Module) -> None:
        super().on_train_epoch_start(trainer, module)
        if trainer.current_epoch >= self.unfreeze_backbone_at_epoch:
            rate = float(trainer.optimizers[0].get_lr()) * self.learning_rate_ratio(trainer.current_epoch)
            trainer.log_metrics({f"lr-{self.backbone}": rate})
            trainer.record(f"lr-{self.backbone}", rate)

    def _late(self, module: Module) -> list[Any]:
        return self.freezable(self._backbone(module), train_bn=self.train_bn)

    def _backbone(self, module: Module) -> paddle.nn.Layer:
        layers = dict(module.named_sublayers())
        if self.backbone not in layers:
            raise ConfigurationError(
                f"BackboneFinetuning(backbone={self.backbone!r}): {type(module).__name__} has no such layer."
                f"{did_you_mean(self.backbone, layers)}"
            )
        return layers[self.backbone]
