"""Lightning 2.6's names and arguments beside ours; `python tests/house/lightning_names.py` prints the docs' table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import paddlelite_trainer
from paddlelite_trainer import (
    Callback,
    CSVLogger,
    DataModule,
    Logger,
    Module,
    TensorBoardLogger,
    Trainer,
    Tuner,
    names_elsewhere,
)
from paddlelite_trainer import callbacks as ours
from paddlelite_trainer.tuner import LRFinderResult


class Thing(NamedTuple):
    """A class, a function or a package of Lightning's."""

    here: Callable[[], Any]
    """Ours: an object of the class, the function itself, the package."""
    arguments: str = ""
    """Of `__init__`, or of the function; those behind `*` by name only."""
    names: str = ""
    """Public methods, properties and attributes; hooks have a table of their own."""


_DATA = "train_dataloaders val_dataloaders dataloaders datamodule"
LIGHTNING: dict[str, Thing] = {
    "lightning.pytorch": Thing(
        lambda: paddlelite_trainer, names="Trainer LightningModule LightningDataModule Callback seed_everything Fabric"
    ),
    "lightning.pytorch.callbacks": Thing(
        lambda: ours,
        names="BackboneFinetuning BaseFinetuning BasePredictionWriter BatchSizeFinder Callback Checkpoint "
        "DeviceStatsMonitor EMAWeightAveraging EarlyStopping GradientAccumulationScheduler LambdaCallback "
        "LearningRateFinder LearningRateMonitor ModelCheckpoint ModelPruning ModelSummary OnExceptionCheckpoint "
        "ProgressBar RichModelSummary RichProgressBar SpikeDetection StochasticWeightAveraging TQDMProgressBar "
        "ThroughputMonitor Timer WeightAveraging",
    ),
    "lightning.pytorch.loggers": Thing(
        lambda: paddlelite_trainer,
        names="CSVLogger CometLogger Logger MLFlowLogger NeptuneLogger TensorBoardLogger WandbLogger",
    ),
    "lightning.pytorch.tuner": Thing(lambda: paddlelite_trainer, names="Tuner"),
    "seed_everything": Thing(lambda: paddlelite_trainer.seed_everything, "seed workers verbose"),
    "Trainer": Thing(
        lambda: Trainer(max_epochs=1),
        "* accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs "
        "max_steps min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches "
        "overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps "
        "enable_checkpointing enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val "
        "gradient_clip_algorithm deterministic benchmark inference_mode use_distributed_sampler profiler "
        "detect_anomaly barebones plugins sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir "
        "enable_autolog_hparams model_registry",
        "accelerator callback_metrics checkpoint_callback checkpoint_callbacks ckpt_path current_epoch "
        "default_root_dir device_ids distributed_sampler_kwargs early_stopping_callback early_stopping_callbacks "
        "enable_validation estimated_stepping_batches evaluating fit global_rank global_step init_module interrupted "
        "is_global_zero is_last_batch lightning_module local_rank log_dir logged_metrics logger loggers "
        "lr_scheduler_configs max_epochs max_steps min_epochs min_steps model node_rank num_devices num_nodes "
        "num_predict_batches num_sanity_val_batches num_test_batches num_training_batches num_val_batches optimizers "
        "precision precision_plugin predict predict_dataloaders predicting print progress_bar_callback "
        "progress_bar_metrics received_sigterm sanity_checking save_checkpoint scaler strategy test test_dataloaders "
        "testing train_dataloader training val_dataloaders validate validating world_size callbacks datamodule "
        "fit_loop validate_loop test_loop predict_loop should_stop state val_check_batch accumulate_grad_batches "
        "check_val_every_n_epoch gradient_clip_algorithm gradient_clip_val limit_train_batches limit_val_batches "
        "limit_test_batches limit_predict_batches num_sanity_val_steps log_every_n_steps val_check_interval "
        "overfit_batches fast_dev_run profiler",
    ),
    "Trainer.fit": Thing(
        lambda: Trainer.fit, "model train_dataloaders val_dataloaders datamodule ckpt_path weights_only"
    ),
    "Trainer.validate": Thing(lambda: Trainer.validate, "model dataloaders ckpt_path verbose datamodule weights_only"),
    "Trainer.test": Thing(lambda: Trainer.test, "model dataloaders ckpt_path verbose datamodule weights_only"),
    "Trainer.predict": Thing(
        lambda: Trainer.predict, "model dataloaders datamodule return_predictions ckpt_path weights_only"
    ),
    "Trainer.save_checkpoint": Thing(lambda: Trainer.save_checkpoint, "filepath weights_only storage_options"),
    "LightningModule": Thing(
        Module,
        names="all_gather automatic_optimization clip_gradients current_epoch device device_mesh dtype "
        "example_input_array fabric forward freeze global_rank global_step hparams hparams_initial "
        "load_from_checkpoint local_rank log log_dict logger loggers lr_schedulers manual_backward on_gpu optimizers "
        "print save_hyperparameters strict_loading to_onnx to_tensorrt to_torchscript toggle_optimizer "
        "toggled_optimizer trainer unfreeze untoggle_optimizer",
    ),
    "LightningModule.log": Thing(
        lambda: Module.log,
        "name value prog_bar logger on_step on_epoch reduce_fx enable_graph sync_dist sync_dist_group "
        "add_dataloader_idx batch_size metric_attribute rank_zero_only",
    ),
    "LightningModule.load_from_checkpoint": Thing(
        lambda: Module.load_from_checkpoint, "checkpoint_path map_location hparams_file strict weights_only"
    ),
    "LightningModule.save_hyperparameters": Thing(lambda: Module.save_hyperparameters, "* ignore frame logger"),
    "LightningDataModule": Thing(
        DataModule,
        names="from_datasets hparams hparams_initial load_from_checkpoint name prepare_data_per_node "
        "save_hyperparameters trainer allow_zero_length_dataloader_with_multiple_devices",
    ),
    "LightningDataModule.from_datasets": Thing(
        lambda: DataModule.from_datasets,
        "train_dataset val_dataset test_dataset predict_dataset batch_size num_workers",
    ),
    "LightningDataModule.load_from_checkpoint": Thing(
        lambda: DataModule.load_from_checkpoint, "checkpoint_path map_location hparams_file weights_only"
    ),
    "LightningDataModule.save_hyperparameters": Thing(lambda: DataModule.save_hyperparameters, "* ignore frame logger"),
    "Callback": Thing(Callback, names="state_key"),
    "ModelCheckpoint": Thing(
        ours.ModelCheckpoint,
        "dirpath filename monitor verbose save_last save_top_k save_on_exception save_weights_only mode "
        "auto_insert_metric_name every_n_train_steps train_time_interval every_n_epochs save_on_train_epoch_end "
        "enable_version_counter",
        "CHECKPOINT_EQUALS_CHAR CHECKPOINT_JOIN_CHAR CHECKPOINT_NAME_LAST FILE_EXTENSION STARTING_VERSION "
        "auto_insert_metric_name best_k_models best_model_path best_model_score check_monitor_top_k current_score "
        "dirpath every_n_epochs file_exists filename format_checkpoint_name kth_best_model_path kth_value "
        "last_model_path mode monitor save_last save_top_k save_weights_only save_on_exception to_yaml verbose",
    ),
    "EarlyStopping": Thing(
        lambda: ours.EarlyStopping("val_loss"),
        "monitor min_delta patience verbose mode strict check_finite stopping_threshold divergence_threshold "
        "check_on_train_epoch_end log_rank_zero_only",
        "best_score check_finite divergence_threshold log_rank_zero_only min_delta mode mode_dict monitor monitor_op "
        "order_dict patience stopped_epoch stopping_reason stopping_reason_message stopping_threshold strict verbose "
        "wait_count",
    ),
    "LearningRateMonitor": Thing(
        ours.LRMonitor,
        "logging_interval log_momentum log_weight_decay log_key_prefix",
        "last_momentum_values last_weight_decay_values log_key_prefix log_momentum log_weight_decay logging_interval "
        "lrs",
    ),
    "StochasticWeightAveraging": Thing(
        lambda: ours.StochasticWeightAveraging(0.1),
        "swa_lrs swa_epoch_start annealing_epochs annealing_strategy avg_fn device",
        "avg_fn swa_start swa_end n_averaged pl_module_contains_batch_norm reset_batch_norm_and_save_state "
        "reset_momenta transfer_weights update_parameters",
    ),
    "GradientAccumulationScheduler": Thing(
        lambda: ours.GradientAccumulationScheduler({4: 2}),
        "scheduling",
        "scheduling epochs get_accumulate_grad_batches going_to_accumulate_grad_batches",
    ),
    "BaseFinetuning": Thing(
        ours.BaseFinetuning,
        names="filter_on_optimizer filter_params finetune_function flatten_modules freeze freeze_before_training "
        "freeze_module make_trainable unfreeze_and_add_param_group",
    ),
    "BackboneFinetuning": Thing(
        ours.BackboneFinetuning,
        "unfreeze_backbone_at_epoch lambda_func backbone_initial_ratio_lr backbone_initial_lr should_align "
        "initial_denom_lr train_bn verbose rounding",
        "previous_backbone_lr backbone_initial_lr backbone_initial_ratio_lr initial_denom_lr lambda_func rounding "
        "should_align train_bn unfreeze_backbone_at_epoch verbose",
    ),
    "Timer": Thing(
        ours.Timer, "duration interval verbose", "end_time start_time state_dict time_elapsed time_remaining"
    ),
    "ThroughputMonitor": Thing(ours.ThroughputMonitor, "batch_size_fn length_fn window_size separator"),
    "DeviceStatsMonitor": Thing(ours.DeviceStatsMonitor, "cpu_stats"),
    "ModelSummary": Thing(ours.ModelSummary, "max_depth", "summarize"),
    "BasePredictionWriter": Thing(
        ours.BasePredictionWriter, "write_interval", "interval write_on_batch_end write_on_epoch_end"
    ),
    "OnExceptionCheckpoint": Thing(
        ours.OnExceptionCheckpoint, "dirpath filename", "FILE_EXTENSION ckpt_path dirpath filename"
    ),
    "LambdaCallback": Thing(ours.LambdaCallback),  # its arguments are the hooks
    "TQDMProgressBar": Thing(
        ours.ProgressBar,
        "refresh_rate process_position leave",
        "disable enable get_metrics is_disabled is_enabled print process_position refresh_rate train_description "
        "validation_description test_description predict_description sanity_check_description total_train_batches "
        "total_val_batches init_train_tqdm init_validation_tqdm init_test_tqdm init_predict_tqdm init_sanity_tqdm "
        "train_progress_bar val_progress_bar test_progress_bar predict_progress_bar BAR_FORMAT",
    ),
    "RichProgressBar": Thing(
        ours.ProgressBar,
        "refresh_rate leave theme console_kwargs",
        "configure_columns disable enable get_metrics refresh_rate theme",
    ),
    "Logger": Thing(
        Logger,
        names="after_save_checkpoint finalize group_separator log_dir log_graph log_hyperparams log_metrics name "
        "root_dir save save_dir version",
    ),
    "CSVLogger": Thing(
        CSVLogger,
        "save_dir name version prefix flush_logs_every_n_steps",
        "experiment finalize log_dir log_hyperparams log_metrics name root_dir save save_dir version",
    ),
    "TensorBoardLogger": Thing(
        TensorBoardLogger,
        "save_dir name version log_graph default_hp_metric prefix sub_dir",
        "experiment finalize hparams log_dir log_graph log_hyperparams log_metrics name root_dir save save_dir "
        "sub_dir version",
    ),
    "Tuner": Thing(lambda: Tuner(Trainer(max_epochs=1)), "trainer", "lr_find scale_batch_size"),
    "Tuner.lr_find": Thing(
        lambda: Tuner.lr_find,
        f"model {_DATA} method min_lr max_lr num_training mode early_stop_threshold update_attr attr_name weights_only",
    ),
    "Tuner.scale_batch_size": Thing(
        lambda: Tuner.scale_batch_size,
        f"model {_DATA} method mode steps_per_trial init_val max_trials batch_arg_name margin max_val",
    ),
    "the result of Tuner.lr_find": Thing(LRFinderResult, names="plot results suggestion"),
    "its suggestion": Thing(lambda: LRFinderResult.suggestion, "skip_begin skip_end"),
    "its plot": Thing(lambda: LRFinderResult.plot, "* suggest show ax"),
}


NOT_HERE: dict[str, dict[str, str]] = {
    "lightning.pytorch.loggers": {
        "CometLogger NeptuneLogger": "a `ServiceLogger` of your own; there are `WandbLogger`, `MLFlowLogger` and others"
    },
    "Trainer": {
        "distributed_sampler_kwargs": "a `DistributedBatchSampler` is used as it is, any other sampler's batches "
        "are dealt out",
        "accelerator": "`trainer.device`",
        "precision_plugin scaler": "`trainer.precision`",
        "init_module": "make the module as any other",
        "fit_loop validate_loop test_loop predict_loop": "`trainer.progress`",
        "val_check_batch": "`trainer.val_check_interval`",
    },
    "Trainer.fit": {"weights_only=": "a checkpoint never runs code; weights alone: `init_from=`"},
    "Trainer.validate": {"weights_only=": "a checkpoint never runs code"},
    "Trainer.test": {"weights_only=": "a checkpoint never runs code"},
    "Trainer.predict": {"weights_only=": "a checkpoint never runs code"},
    "Trainer.save_checkpoint": {"filepath=": "`tag`, a name in the run directory", "storage_options=": "`RemoteCopy`"},
    "LightningModule": {
        "device_mesh fabric": "nothing takes their place",
        "example_input_array": "set it in `__init__`: `trainer.export` takes it where no run has called `forward`",
        "on_gpu": "`self.trainer.device.is_accelerator`",
        "to_onnx": "`trainer.export(path, 'onnx')`",
        "to_torchscript": "`trainer.export(path)`, a program for `paddle.inference`",
        "to_tensorrt": "`paddle.inference`",
        "toggled_optimizer": "`toggle_optimizer` and `untoggle_optimizer`",
    },
    "LightningModule.log": {
        "enable_graph=": "what is logged is detached",
        "sync_dist_group=": "epoch values are taken over all ranks",
        "metric_attribute=": "a `paddle.metric.Metric` is found by itself",
    },
    "LightningModule.load_from_checkpoint": {
        "hparams_file=": "arguments by name",
        "weights_only=": "a checkpoint never runs code",
    },
    "LightningModule.save_hyperparameters": {"frame=": "call it in `__init__`"},
    "LightningDataModule": {
        "name": "`type(datamodule).__name__`",
        "prepare_data_per_node": "`prepare_data` runs on rank 0 alone",
        "allow_zero_length_dataloader_with_multiple_devices": "nothing takes its place",
    },
    "LightningDataModule.load_from_checkpoint": {
        "hparams_file=": "arguments by name",
        "weights_only=": "a checkpoint never runs code",
    },
    "LightningDataModule.save_hyperparameters": {"frame=": "call it in `__init__`"},
    "ModelCheckpoint": {
        "CHECKPOINT_EQUALS_CHAR CHECKPOINT_JOIN_CHAR": "`auto_insert_metric_name=False`, and `filename`",
        "CHECKPOINT_NAME_LAST": "`latest`",
        "FILE_EXTENSION": "a checkpoint is a directory",
        "STARTING_VERSION": "a name that is taken moves to the newer checkpoint",
        "check_monitor_top_k format_checkpoint_name file_exists": "`trainer.checkpoints.entries()`",
        "to_yaml": "`paddlelite ckpt ls --json`",
    },
    "EarlyStopping": {"mode_dict monitor_op order_dict": "`mode`"},
    "LearningRateMonitor": {"last_momentum_values last_weight_decay_values": "`trainer.callback_metrics`"},
    "StochasticWeightAveraging": {
        "avg_fn": "a subclass of `AveragedWeights`",
        "swa_start": "`first_epoch(trainer)`",
        "swa_end": "`on_train_end`",
        "pl_module_contains_batch_norm reset_batch_norm_and_save_state reset_momenta": "`fit` does it at its end",
        "transfer_weights update_parameters": "`begin` and `move`",
    },
    "BaseFinetuning": {
        "filter_on_optimizer filter_params": "`freezable(layer)`",
        "flatten_modules": "`layer.sublayers()`",
        "freeze_module": "`freeze`",
        "make_trainable unfreeze_and_add_param_group": "`unfreeze_and_train`",
    },
    "BackboneFinetuning": {
        "backbone_initial_lr": "`backbone_initial_ratio_lr`",
        "initial_denom_lr": "`learning_rate_ratio` of `unfreeze_and_train`",
        "verbose rounding": "`LRMonitor`",
        "previous_backbone_lr": "`learning_rate_ratio(epoch)`",
    },
    "ModelSummary": {"summarize": "`paddlelite_trainer.callbacks.model_summary.summarize(module, max_depth)`"},
    "OnExceptionCheckpoint": {"FILE_EXTENSION": "a checkpoint is a directory"},
    "TQDMProgressBar": {
        "refresh_rate": "`refresh_seconds`",
        "process_position": "one bar",
        "disable enable is_disabled is_enabled": "`Trainer(enable_progress_bar=False)`",
        "total_train_batches total_val_batches": "`trainer.num_training_batches`, `num_val_batches`",
        "train_description validation_description test_description predict_description "
        "sanity_check_description init_train_tqdm init_validation_tqdm init_test_tqdm init_predict_tqdm "
        "init_sanity_tqdm train_progress_bar val_progress_bar test_progress_bar predict_progress_bar "
        "BAR_FORMAT": "a bar of your own: a `Callback`",
    },
    "RichProgressBar": {
        "refresh_rate": "`refresh_seconds`",
        "theme configure_columns": "a bar of your own: a `Callback`",
        "disable enable": "`Trainer(enable_progress_bar=False)`",
    },
    "Logger": {"group_separator": "`/` in a name", "log_graph": "nothing draws the graph"},
    "TensorBoardLogger": {
        "sub_dir": "`directory`",
        "log_graph": "nothing draws the graph",
        "hparams": "hyper-parameters are a text",
    },
    "Tuner.lr_find": {"dataloaders=": "it tries by training", "weights_only=": "a checkpoint never runs code"},
    "its plot": {"show= ax=": "`plot(path)` draws into a file"},
    "Tuner.scale_batch_size": {"val_dataloaders= dataloaders=": "it tries by training"},
}
"""{theirs: {names, arguments of functions with a =, separated by blanks: what to use}}; classes say it of theirs
themselves, by `explains_unknown_arguments`."""

DIFFERENT: dict[str, dict[str, str]] = {
    "LightningModule": {"strict_loading": "`fit(ckpt_path=)` is strict; some weights: `InitFrom(path, strict=False)`"},
    "Trainer": {
        "precision": "an object; `trainer.precision.requested` is the word",
        "state": "a word: 'fit', 'validate', 'test', 'predict' or None",
        "profiler=": "'simple' or 'paddle'",
        "device_ids": "of this process alone",
        "log_dir": "a `Path`; before `fit` known of a run with a `run_name`",
    },
    "BaseFinetuning": {
        "finetune_function": "it is given `(trainer, module, epoch)`",
        "freeze": "without `train_bn=True` BatchNorm is frozen too",
    },
    "ModelCheckpoint": {"every_n_epochs": "a schedule {first epoch: n}"},
    "StochasticWeightAveraging": {"swa_lrs=": "a list has one for each optimizer, not for each parameter group"},
    "TQDMProgressBar": {"leave=": "a line of each epoch stays"},
    "BasePredictionWriter": {"write_on_batch_end write_on_epoch_end": "`batch_indices` is None"},
    "Logger": {"finalize": "its word is 'finished' or 'failed'", "save_dir root_dir log_dir": "None before `fit`"},
    "CSVLogger": {"experiment": "the logger itself"},
    "Tuner.lr_find": {"update_attr=": "False unless you ask: the suggestion is told, and everything stays as it was"},
    "Tuner.scale_batch_size": {
        "train_dataloaders=": "a datamodule; a loader has its batch size already",
        "margin=": "0.0 unless you ask",
        "max_val=": "no limit unless you ask",
        "batch_arg_name=": "the size found is told and returned; `update_attr=True` sets it",
    },
}
"""{theirs: {names that are here with another meaning: which}}."""


def arguments_here(here: Any) -> Iterator[inspect.Parameter]:
    """The parameters of a function, or of an object's or a class's `__init__`."""
    kind = here if inspect.isclass(here) else type(here)
    parameters = inspect.signature(here if inspect.isroutine(here) else kind.__init__).parameters
    return (one for name, one in parameters.items() if name != "self")


def exists(here: Any, name: str) -> bool:
    """Whether ours has a name; no property is asked for its value."""
    if inspect.ismodule(here):
        return name in here.__all__
    return hasattr(here if inspect.isclass(here) else type(here), name) or name in getattr(here, "__dict__", {})


def instead_of(theirs: str) -> dict[str, str]:
    """{argument=, or a package's name: what to use} of what is not here, as our own errors say it."""
    here, wanted = LIGHTNING[theirs].here(), LIGHTNING[theirs].arguments.split()
    if inspect.ismodule(here):
        known = names_elsewhere.CLASSES if here is paddlelite_trainer else names_elsewhere.CALLBACKS
        return {name: told for name, told in known.items() if name in LIGHTNING[theirs].names.split()}
    kind = here if inspect.isclass(here) else type(here)
    told = {} if inspect.isroutine(here) else getattr(kind.__init__, "instead", {})
    return {f"{name}=": told[name] for name in wanted if name in told}


def listed(table: dict[str, dict[str, str]], theirs: str) -> set[str]:
    return {name for names in table.get(theirs, {}) for name in names.split()}


def table() -> str:
    rows = ["| Lightning's | name, or argument= | instead |", "|---|---|---|"]
    for theirs in LIGHTNING:
        arguments: dict[str, str] = {}
        for argument, remedy in instead_of(theirs).items():
            same = next((names for names, known in arguments.items() if known == remedy), None)
            arguments[argument if same is None else f"{same} {argument}"] = remedy
            arguments.pop(same or "", None)
        kinds = (
            (arguments, ""),
            (NOT_HERE.get(theirs, {}), ""),
            (DIFFERENT.get(theirs, {}), "here with another meaning: "),
        )
        for kind, told in kinds:
            for names, remedy in kind.items():
                rows.append(f"| {theirs} | {', '.join(f'`{name}`' for name in names.split())} | {told}{remedy} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
