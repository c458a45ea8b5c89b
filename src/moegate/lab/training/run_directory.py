"""The folder of one run: what is where, who may write into it, and how it is read back."""

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from moegate.lab.training.checkpoint import write_whole
from moegate.lab.training.config import TrainConfig
from moegate.ops.library import KERNELS

SCHEMA = 1


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run's files.

    `run.json` says what the run is, `metrics.jsonl` how it went, `checkpoint.safetensors` where it can be
    continued, `evaluation.json` what came out.

    Example:
        >>> RunDirectory(Path("runs/a")).metrics.name
        'metrics.jsonl'
    """

    path: Path

    @property
    def description(self) -> Path:
        """What the run is: configuration, rule, sizes, software, status."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """How it went: one JSON object a log step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """Where it can be continued."""
        return self.path / "checkpoint.safetensors"

    @property
    def evaluation(self) -> Path:
        """What came out."""
        return self.path / "evaluation.json"

    def read_description(self) -> dict[str, Any]:
        """Return `run.json`.

        Raises:
            FileNotFoundError: no run here.
            ValueError: a file that doesn't parse, or of another version of the format.
        """
        described = read_json(self.description)
        if described.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.description} has schema {described.get('schema')!r}; this version reads schema {SCHEMA}."
            )
        return described

    def is_done(self) -> bool:
        """Whether a run finished here, its evaluation included."""
        return self.description.is_file() and self.read_description()["status"] == "done"

    def claim(self, config: TrainConfig, *, resume: bool) -> bool:
        """Check that a run of `config` may write here; return whether it continues an earlier one.

        Raises:
            ValueError: a run is here and `resume` is False, or it was started with another configuration.
        """
        if not self.description.is_file():
            if self.path.exists() and any(self.path.iterdir()):
                raise ValueError(f"{self.path} holds files but no run; choose an empty folder.")
            return False
        if not resume:
            raise ValueError(f"{self.path} already holds a run. Continue it with --resume, or choose another --output.")
        differences = config.differences(self.read_description()["config"])
        if differences:
            raise ValueError(
                f"The run in {self.path} was started with another configuration, so it can't be continued "
                f"with this one: {'; '.join(differences)}. Use the same settings, or another --output."
            )
        return True

    def check_data(self, fingerprint: str) -> None:
        """Refuse to go on with other data than the run was started with.

        Raises:
            ValueError: the data differ, such as after an upgrade of the packages they are read from.
        """
        if self.read_description().get("data") not in {None, fingerprint}:
            raise ValueError(
                f"The run in {self.path} was started with other data (another corpus, or other versions of the "
                "packages it is read from), so it can't be continued. Restore them, or choose another --output."
            )

    def warn_of_other_software(self) -> None:
        """Warn if the run goes on with another version of PyTorch or number of threads: sums may then round anew."""
        before, here = self.read_description()["software"], software()
        changed = [
            f"{name} {before.get(name)} → {here[name]}"
            for name in ("torch", "threads", "kernels")
            if before.get(name) != here[name]
        ]
        if changed:
            warnings.warn(
                f"The run in {self.path} goes on with {', '.join(changed)}: its numbers may differ in the last digits "
                "from those of an uninterrupted run.",
                stacklevel=3,
            )


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that doesn't hold a JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "a.json")
        ...     write_json(path, {"a": 1})
        ...     read_json(path)
        {'a': 1}
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """Write a JSON object whole or not at all; NaN and infinity are refused, since JSON has neither."""
    write_whole(path, json.dumps(content, indent=indent, allow_nan=False).encode() + b"\n")


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second.

    Example:
        >>> len(now())
        25
    """
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def software() -> dict[str, Any]:
    """Return the versions and the machine that a result was measured with.

    Example:
        >>> sorted(software())
        ['kernels', 'moegate', 'platform', 'processor', 'python', 'threads', 'torch']
    """
    try:
        own = version("moegate")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "moegate": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "kernels": KERNELS.reason if KERNELS.loaded else "references",
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
