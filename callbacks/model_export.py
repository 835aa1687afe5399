"""ModelExport: exports the model at the end of a fit, and tries at its beginning whether that will work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from paddlelite_trainer import Callback, Module, Trainer
from paddlelite_trainer.errors import CheckpointError, ExportError, explains_unknown_arguments


class ModelExport(Callback):
    """Calls `trainer.export` where training is over; its arguments are those of `trainer.export`.

        Trainer(callbacks=[ModelCheckpoint(monitor="val_acc", mode="max"), ModelExport("out/model.onnx", "onnx")])

    Where there is no such checkpoint, as without a monitored metric, the newest is taken, and without any the weights
    that the module has. With `rehearse` all is made and compared once after the first batch, and no file is left: what
    cannot be exported is an error then, and not after days. It changes no number of the run. A run that was over when
    it is started again is exported if the files are not there.

    Args:
        path: the file or the files' common name, as in `trainer.export`.
        format: "inference", "onnx", "safetensors" or "pdparams"; None: the path's suffix tells, else "inference".
        checkpoint: whose weights: "best", "last", a tag or a path; None: those that the module has.
        input_spec: what forward is called with; None: what a batch has shown.
        weights: another file of the checkpoint, such as "ema", in the place of the model's.
        tolerance: how far outputs may be from eager ones.
        opset_version: ONNX's.
        rehearse: try it after the first batch.
    """

    @explains_unknown_arguments({})
    def __init__(
        self,
        path: str | Path,
        format: Literal["inference", "onnx", "safetensors", "pdparams"] | None = None,
        checkpoint: str | None = "best",
        input_spec: Any = None,
        *,
        weights: str | None = None,
        tolerance: float = 1e-4,
        opset_version: int = 13,
        rehearse: bool = True,
    ) -> None:
        self.path, self.format, self.checkpoint, self.input_spec = path, format, checkpoint, input_spec
        self.weights, self.tolerance, self.opset_version, self.rehearse = weights, tolerance, opset_version, rehearse
        self.exported: Any = None
        """What `trainer.export` has returned."""
        self._is_rehearsed = False

    def setup(self, trainer: Trainer, module: Module, stage: str) -> None:
        if stage == "fit":
            self.exported, self._is_rehearsed = None, not self.rehearse or self._is_of_weights

    @property
    def _is_of_weights(self) -> bool:
        return (self.format or Path(self.path).suffix[1:]) in ("safetensors", "pdparams")

    def on_train_batch_end(self, trainer: Trainer, module: Module, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._is_rehearsed:
            self._is_rehearsed = True
            try:
                self._export(trainer, None, dry_run=True)
            except ExportError as error:
                raise ExportError(
                    f"{error}. This is a rehearsal after the first batch: at the fit's end it would fail in the same "
                    "way. ModelExport(rehearse=False) trains all the same"
                ) from error

    def on_fit_end(self, trainer: Trainer, module: Module) -> None:
        try:
            self.exported = self._export(trainer, self.checkpoint)
        except CheckpointError:
            if self.checkpoint != "best":
                raise
            try:
                self.exported = self._export(trainer, "last")
            except CheckpointError:
                self.exported = self._export(trainer, None)

    def on_already_over(self, trainer: Trainer, module: Module) -> None:
        there = Path(self.path).expanduser()
        if not any(there.parent.glob(f"{there.name}*")):
            self.on_fit_end(trainer, module)

    def _export(self, trainer: Trainer, checkpoint: str | None, *, dry_run: bool = False) -> Any:
        return trainer.export(
            self.path,
            self.format,
            checkpoint,
            self.input_spec,
            weights=None if dry_run else self.weights,
            tolerance=self.tolerance,
            opset_version=self.opset_version,
            dry_run=dry_run,
        )
