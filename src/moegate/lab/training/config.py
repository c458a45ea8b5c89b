"""What one training run is: a frozen, validated value that is written beside its results."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moegate.lab.training.routers import default_balance, router_spec
from moegate.parts import did_you_mean

TASKS = ("image", "text")
CONTROLS = ("none", "dense", "frozen")

TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    "image": {
        "hidden_size": 64,
        "intermediate_size": 16,
        "num_layers": 2,
        "steps": 600,
        "batch_size": 128,
        "learning_rate": 4e-3,
        "warmup_steps": 20,
        "log_every": 10,
    },
    "text": {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_layers": 4,
        "steps": 1000,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "warmup_steps": 50,
        "log_every": 10,
    },
}
"""The values of a task that differ from the general defaults below."""


@dataclass(frozen=True)
class TrainConfig:
    """The configuration of one training run.

    Build it with `TrainConfig.create`, which fills in the defaults of the task and checks names and types.

    Attributes:
        task: "image" (5,000 handwritten digits) or "text" (bytes of several domains).
        router: the routing strategy by name.
        top_k: K, experts per token; routers that don't take K refuse it.
        balance: how the load is balanced, by name; "none" for not at all. By default "aux" where it can act.
        balance_coefficient: weight of the balance loss of each layer.
        controller_rate: step of the bias controllers; None takes each controller's own.
        z_loss: weight of the router z-loss of each layer; 0 leaves it out.
        control: "dense" replaces every MoE by a feed-forward of the same active FLOPs, "frozen" keeps the gates
            at their random initial weights.
        num_experts: E.
        hidden_size: D.
        intermediate_size: F of one expert.
        num_layers: number of layers with a feed-forward.
        num_heads: attention heads (text).
        sequence_length: bytes of one training window (text).
        seed: of the initial weights, the data order and the noise of the router.
        steps: optimizer steps.
        batch_size: images or windows of one optimizer step.
        accumulate: micro-batches that the batch is split into.
        learning_rate: the peak, reached after `warmup_steps`, then a cosine to a tenth of it.
        warmup_steps: steps of linear warm-up.
        weight_decay: AdamW's, on matrices only.
        clip_norm: the largest gradient norm.
        temperature_start: first temperature of annealed routers (Gumbel, straight-through).
        temperature_end: their last one, reached geometrically.
        capacity_factor: overrides the capacity factor of routers that have one.
        log_every: steps of one line in `metrics.jsonl`.
        checkpoint_every: steps between checkpoints.
        image_shift: the most pixels that a training image is moved by, in each direction (image).
        evaluation_windows: windows of each domain that the text evaluation reads.
        corpus: a folder with one subfolder a domain (text); None takes the built-in corpus.

    Example:
        >>> TrainConfig.create(task="image", top_k=4).steps > 0
        True
        >>> TrainConfig.create(task="image", topk=4)
        Traceback (most recent call last):
            ...
        ValueError: Unknown setting 'topk'. Did you mean 'top_k'?
    """

    task: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    log_every: int
    router: str = "topk"
    top_k: int = 2
    balance: str = "aux"
    balance_coefficient: float = 0.01
    controller_rate: float | None = None
    z_loss: float = 0.0
    control: str = "none"
    num_experts: int = 8
    num_heads: int = 4
    sequence_length: int = 256
    seed: int = 0
    accumulate: int = 1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    temperature_start: float = 2.0
    temperature_end: float = 0.5
    capacity_factor: float | None = None
    checkpoint_every: int = 100
    image_shift: int = 2
    evaluation_windows: int = 16
    corpus: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        _check_choice("task", self.task, TASKS)
        _check_choice("control", self.control, CONTROLS)
        _check_types(self)
        _check_ranges(self)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} can't be split into accumulate={self.accumulate} equal "
                "micro-batches; choose a divisor."
            )

    @classmethod
    def create(cls, **settings: Any) -> "TrainConfig":
        """Return a configuration from settings by name; what is missing takes the default of the task.

        Raises:
            ValueError: an unknown setting, a value out of range, or a setting that would have no effect.
            TypeError: a value of the wrong type.
        """
        names = tuple(field.name for field in fields(cls))
        for name in settings:
            if name not in names:
                raise ValueError(f"Unknown setting '{name}'.{did_you_mean(name, names)}")
        task = settings.get("task", "image")
        _check_choice("task", task, TASKS)
        balance = default_balance(str(settings.get("router", "topk")), settings.get("control", "none"))
        config = cls(**{"task": task, "balance": balance, **TASK_DEFAULTS[task], **settings})
        # A recorded configuration names every setting, whether or not its run read it.
        if len(settings) < len(names):
            _check_effect(task, settings)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values.

        Example:
            >>> config = TrainConfig.create(task="image")
            >>> TrainConfig.create(**config.to_dict()) == config
            True
        """
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return a readable line for each setting whose value in `other` is not this one.

        Example:
            >>> config = TrainConfig.create(task="image")
            >>> config.differences({**config.to_dict(), "seed": 3})
            ['seed: 0 here, 3 there']
        """
        mine = self.to_dict()
        names = [*mine, *(name for name in other if name not in mine)]
        absent = "nothing"
        return [
            f"{name}: {mine.get(name, absent)} here, {other.get(name, absent)} there"
            for name in names
            if mine.get(name, absent) != other.get(name, absent)
        ]


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML or JSON file.

    Raises:
        ValueError: another kind of file, text that doesn't parse, or a file that isn't a table of settings.
        FileNotFoundError: no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "run.json")
        ...     _ = path.write_text('{"top_k": 4}')
        ...     read_config_file(path)
        {'top_k': 4}
    """
    if not path.is_file():
        raise FileNotFoundError(f"No configuration file at {path}.")
    if path.suffix not in {".json", ".toml"}:
        raise ValueError(f"The configuration file {path} must end in .json or .toml.")
    text = path.read_text(encoding="utf-8")
    try:
        settings = json.loads(text) if path.suffix == ".json" else _parse_toml(text)
    except ValueError as error:
        raise ValueError(f"The configuration file {path} doesn't parse: {error}.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"The configuration file {path} must hold a table of settings, one name a value.")
    return settings


def _parse_toml(text: str) -> Any:
    try:
        parser = importlib.import_module("tomllib")
    except ModuleNotFoundError:
        raise ValueError("TOML needs Python 3.11 or later; write the settings as JSON") from None
    return parser.loads(text)


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known.{did_you_mean(str(value), choices)}")


def _check_types(config: TrainConfig) -> None:
    for field in fields(config):
        value, wanted = getattr(config, field.name), _accepted_types(field.type)
        # bool is an int to Python, but `steps = true` in a file is a mistake.
        if isinstance(value, bool) or not isinstance(value, wanted):
            expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in wanted)
            raise TypeError(f"{field.name}={value!r} must be {expected}, not {type(value).__name__}.")


def _accepted_types(annotation: Any) -> tuple[type, ...]:
    parts: tuple[type, ...] = getattr(annotation, "__args__", (annotation,))
    return (int, *parts) if float in parts else parts


# What a training reads; `evaluation_windows` may stand in a file that runs of both tasks share.
_ONLY_OF_TASK = {"image": ("image_shift",), "text": ("num_heads", "sequence_length", "corpus")}


def _check_effect(task: str, settings: Mapping[str, Any]) -> None:
    """Refuse what was asked for and would be ignored."""
    for other, names in _ONLY_OF_TASK.items():
        for name in names:
            if name in settings and settings[name] is not None and task != other:
                raise ValueError(
                    f"{name}={settings[name]} has no effect on the task '{task}': leave it out, or take task='{other}'."
                )
    router = str(settings.get("router", "topk"))
    if "top_k" in settings and settings.get("control") != "dense" and not router_spec(router).uses_top_k:
        raise ValueError(
            f"top_k={settings['top_k']} has no effect on the router '{router}', which doesn't take K: leave it out, "
            "or take another router, such as topk."
        )


_AT_LEAST_ONE = (
    "hidden_size", "intermediate_size", "num_layers", "steps", "batch_size", "log_every", "top_k",
    "num_experts", "num_heads", "sequence_length", "accumulate", "checkpoint_every", "evaluation_windows",
)  # fmt: skip
_NOT_NEGATIVE = ("warmup_steps", "balance_coefficient", "z_loss", "seed", "weight_decay", "image_shift")
_POSITIVE = (
    "learning_rate", "clip_norm", "temperature_start", "temperature_end", "controller_rate", "capacity_factor",
)  # fmt: skip


def _check_ranges(config: TrainConfig) -> None:
    for name in _AT_LEAST_ONE:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")
    for name in _NOT_NEGATIVE:
        # `not >=` and not `<`: NaN must be refused too.
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}={getattr(config, name)} must not be negative.")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value} must be a positive finite number.")
    if config.top_k > config.num_experts:
        raise ValueError(
            f"top_k={config.top_k} exceeds the {config.num_experts} experts; choose at most {config.num_experts}."
        )
