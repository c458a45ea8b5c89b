"""``RoutingCallback`` for ``transformers.Trainer`` and everything made of it: TRL, axolotl and others."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from moegate.balance.controllers import BiasController
from moegate.hf.training.alarms import Alarms, RoutingWarning
from moegate.hf.training.log_steps import readings_since_log
from moegate.hf.training.matrices import LoadFile
from moegate.hf.training.monitor import RoutingMonitor
from moegate.hf.training.run_state import load_state, save_state

__all__ = ["RoutingCallback"]


class RoutingCallback(TrainerCallback):  # type: ignore[misc]  # transformers publishes no types
    """Logs what the routers do, warns when they go wrong, and balances them: ``callbacks=[RoutingCallback()]``.

    Selection biases, which transformers never updates, move once per optimizer step, and a pooled balance loss that is
    on gives way to one for each layer. ``RoutingCallback(balance_loss=None, bias_controller=None)`` only watches.

    Every log of the trainer gets a fixed number of entries (see ``summarize``) under ``prefix``, those of an evaluation
    under ``eval_`` and the prefix; integrations (``report_to``) get them in the same call. Counts are exact over
    gradient accumulation, checkpointing and data-parallel ranks; see ``RoutingMonitor``, which does the work.

    Args:
        balance_loss: the coefficient of each layer's load-balancing loss, in place of the model's pooled one;
            ``"model"`` for the weight of that one; ``"auto"`` for the same where the pooled one is on
            (``output_router_logits`` and a coefficient); None changes nothing.
        bias_controller: makes a controller of the selection bias for a number of experts, such as ``SignBias``;
            ``"auto"`` for ``SignBias`` where the model selects by sigmoid scores with a bias; None leaves the biases
            alone.
        prefix: of the names in the logs.
        load_file: where the full counts of every log step go, as JSON lines; a relative path is taken from the
            trainer's ``output_dir``. None writes none.
        alarms: whether to warn.

    Example:
        >>> callback = RoutingCallback(load_file="load.jsonl")  # Trainer(..., callbacks=[callback])
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
        self._model: nn.Module | None = None
        self._alarms: Alarms | None = None
        self._file: LoadFile | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Watch the model, before it is wrapped and an optimizer is made."""
        _go_first(self, inspect.currentframe())
        self._watch(args, kwargs["model"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the state of a resumed run."""
        _go_first(self, inspect.currentframe())
        monitor = self._watch(args, kwargs["model"])
        monitor.clear()
        if state.global_step and monitor.bias is not None:
            self._resume([_checkpoint(args, state), args.resume_from_checkpoint], monitor)
        if self._load_path is not None and state.is_world_process_zero:
            path = Path(args.output_dir, self._load_path)
            self._file = LoadFile(path, [layer.name for layer in monitor.layers], resume_at=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the biases and sum the counts of the step."""
        if self.monitor is not None:
            self.monitor.step(skipped=bool(getattr(kwargs.get("optimizer"), "step_was_skipped", False)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the readings into the log."""
        if self.monitor is None or logs is None:
            return
        of = next((name.removesuffix("_runtime") for name in logs if name.endswith("_runtime")), None)
        if of not in (None, "train"):
            added = self._evaluation(self.monitor, state, f"{of}_")
        elif "loss" in logs or (of == "train" and self.monitor.has_counts):
            added = self._training(self.monitor, state)
        else:
            return
        logs.update(added)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the float32 biases and their controllers into the checkpoint."""
        folder = _checkpoint(args, state)
        if self.monitor is None or self.monitor.bias is None or not state.is_world_process_zero:
            return
        if folder.is_dir():  # in a search over hyperparameters the checkpoints of a trial lie elsewhere
            save_state(folder, self.monitor.state_dict())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model: it has no hooks any more, and its own pooled loss is back."""
        if self.monitor is not None:
            self.monitor.close()
            self.monitor = self._model = None

    def _watch(self, args: TrainingArguments, model: nn.Module) -> RoutingMonitor:
        if self.monitor is not None and self._model is model:
            return self.monitor
        if self.monitor is not None:
            self.monitor.close()
        # A trainer with a model_init makes its model anew when the training begins.
        self.monitor, self._model = self._balanced(args, model), model
        layers = self.monitor.layers
        self._alarms = Alarms([layer.name for layer in layers], [layer.top_k for layer in layers])
        asked = self._bias_controller != "auto"
        if asked and self.monitor.bias is not None and (frozen := self.monitor.bias.frozen):
            warnings.warn(
                f"The routers of {len(frozen)} layers are frozen, so their selection biases stay as they are.",
                RoutingWarning,
                stacklevel=2,
            )
        return self.monitor

    def _balanced(self, args: TrainingArguments, model: nn.Module) -> RoutingMonitor:
        return RoutingMonitor(
            model,
            balance_loss=self._balance_loss,
            bias_controller=self._bias_controller,
            # What a trainer's own loss of a micro-batch counts in the step; under fp16, its scale isn't known.
            unclaimed=0.0 if args.fp16 else 1.0 / args.gradient_accumulation_steps,
            # TRL's arguments have one, which its trainers don't all tell the model.
            aux_loss_coefficient=getattr(args, "router_aux_loss_coef", None),
        )

    def _resume(self, folders: list[Any], monitor: RoutingMonitor) -> None:
        for folder in folders:
            if isinstance(folder, str | Path) and (saved := load_state(folder)) is not None:
                monitor.load_state_dict(saved)
                return
        warnings.warn(
            f"{folders[0]} holds no state of the bias update: it starts from the model's own biases.",
            RoutingWarning,
            stacklevel=2,
        )

    def _training(self, monitor: RoutingMonitor, state: TrainerState) -> dict[str, float]:
        alarms = self._alarms if self._warns and state.is_world_process_zero else None
        readings = readings_since_log(monitor, alarms, state.global_step)
        if self._file is not None:
            self._file.write(monitor.window, step=state.global_step, split="train")
        monitor.window.clear()
        return {self._prefix + name: value for name, value in readings.items()}

    def _evaluation(self, monitor: RoutingMonitor, state: TrainerState, split: str) -> dict[str, float]:
        tally = monitor.evaluation()
        if self._file is not None:
            self._file.write(tally, step=state.global_step, split=split.removesuffix("_"))
        return {f"{split}{self._prefix}{name}": value for name, value in monitor.metrics(tally).items()}


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}")


def _go_first(callback: TrainerCallback, frame: Any) -> None:
    """Move the callback before those that write logs out, so that they see what it adds.

    A trainer puts its integrations before its user's callbacks and tells those neither of itself nor of the list; the
    one who calls them is the list's owner.
    """
    handler = frame.f_back.f_locals.get("self") if frame is not None and frame.f_back is not None else None
    if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
        handler.callbacks.remove(callback)
        handler.callbacks.insert(0, callback)
