"""``RoutingCallback`` for Lightning: ``Trainer(callbacks=[RoutingCallback()])``; needs the extra ``lightning``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from moegate.balance.controllers import BiasController
from moegate.hf.training.alarms import Alarms
from moegate.hf.training.log_steps import readings_since_log
from moegate.hf.training.matrices import LoadFile
from moegate.hf.training.monitor import RoutingMonitor
from moegate.hf.training.tally import Tally

__all__ = ["RoutingCallback"]


class RoutingCallback(Callback):  # type: ignore[misc]  # lightning is optional, and may be absent where types are checked
    """Logs what the routers inside a ``LightningModule`` do, warns, and balances them.

    The arguments are those of ``moegate.hf.RoutingCallback``. Readings are logged every ``log_every_n_steps`` optimizer
    steps and at the end of each validation. The balance loss is in the loss that the transformers model returns; a
    ``training_step`` that makes its own loss gets the same gradient, without the number. The biases' state is in
    Lightning's checkpoints.

    Args:
        balance_loss: the coefficient of each layer's loss, ``"model"``, ``"auto"`` or None.
        bias_controller: makes a controller for a number of experts, such as ``SignBias``; ``"auto"`` or None.
        prefix: of the names in the logs.
        load_file: where the full counts go, as JSON lines; a relative path is taken from ``default_root_dir``.
        alarms: whether to warn.

    Example:
        >>> callback = RoutingCallback(balance_loss=0.01)  # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        *,
        balance_loss: float | str | None = "auto",
        bias_controller: Callable[[int], BiasController] | str | None = "auto",
        prefix: str = "routing/",
        load_file: str | Path | None = None,
        alarms: bool = True,
    ) -> None:
        self._balance_loss, self._bias_controller = balance_loss, bias_controller
        self._prefix, self._load_path, self._warns = prefix, load_file, alarms
        self.monitor: RoutingMonitor | None = None
        self._alarms: Alarms | None = None
        self._file: LoadFile | None = None
        self._steps = 0
        self._loaded: dict[str, Tensor] = {}
        self._final: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the model, before it is wrapped and an optimizer is made."""
        if self.monitor is None:
            self.monitor = RoutingMonitor(
                pl_module,
                balance_loss=self._balance_loss,
                bias_controller=self._bias_controller,
                unclaimed=1.0 / trainer.accumulate_grad_batches,
            )
            layers = self.monitor.layers
            self._alarms = Alarms([layer.name for layer in layers], [layer.top_k for layer in layers])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the state of a resumed run."""
        monitor = self._monitor()
        self._steps = trainer.global_step
        if self._loaded:
            monitor.load_state_dict(self._loaded)
            self._loaded = {}
        if self._load_path is not None and trainer.is_global_zero:
            path = Path(trainer.default_root_dir, self._load_path)
            self._file = LoadFile(path, [layer.name for layer in monitor.layers], resume_at=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After an optimizer step: move the biases, sum the counts and, where it is time, log."""
        if trainer.global_step == self._steps:
            return  # gradients are still accumulating
        self._steps = trainer.global_step
        monitor = self._monitor()
        monitor.step()
        if self._steps % trainer.log_every_n_steps:
            return
        alarms = self._alarms if self._warns and trainer.is_global_zero else None
        readings = readings_since_log(monitor, alarms, self._steps)
        self._log(pl_module, monitor.window, readings, "train")
        monitor.window.clear()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the readings of a validation."""
        monitor = self._monitor()
        tally = monitor.evaluation()
        if not trainer.sanity_checking:
            self._log(pl_module, tally, monitor.metrics(tally), "val")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the model: its own pooled loss is back."""
        if self.monitor is not None:
            self._final = self.monitor.state_dict()
            self.monitor.close()
            self.monitor = None

    def state_dict(self) -> dict[str, Any]:
        """The float32 biases and their controllers, for Lightning's checkpoints."""
        return self._final if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the training starts."""
        self._loaded = state_dict

    def _monitor(self) -> RoutingMonitor:
        if self.monitor is None:
            raise RuntimeError("This callback watches no model: let a Trainer set it up.")
        return self.monitor

    def _log(self, module: LightningModule, tally: Tally, readings: dict[str, float], split: str) -> None:
        before = "" if split == "train" else f"{split}_"
        module.log_dict({f"{before}{self._prefix}{name}": value for name, value in readings.items()})
        if self._file is not None:
            self._file.write(tally, step=self._steps, split=split)
