"""The full counts of every log step in a file: one JSON line a step, whole lines only, cut back on resume."""

import json
from pathlib import Path

from moegate.hf.training.tally import Tally
from moegate.lab.logging.jsonl import keep_until

__all__ = ["LoadFile"]


class LoadFile:
    """Appends what each layer sent where to a file of JSON lines.

    A line holds ``step``, ``split`` (``train`` or ``eval``), ``layers`` (their names), ``load`` (a list of counts a
    layer) and ``tokens``. ``moegate.lab.logging.jsonl.read_metrics`` reads it back, without a last line that a killed
    run left half.

    Args:
        path: of the file; folders are made.
        layers: the names of the layers.
        resume_at: the step that a resumed run goes on from: later lines, which it will write again, are cut off. 0
            starts anew.

    Example:
        >>> import tempfile, torch
        >>> tally = Tally([2])
        >>> tally.add(0, torch.tensor([[0], [1], [1]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = LoadFile(Path(folder, "load.jsonl"), ["mlp"])
        ...     file.write(tally, step=5, split="train")
        ...     file.path.read_text()
        '{"step": 5, "split": "train", "layers": ["mlp"], "load": [[1, 2]], "tokens": [3]}\\n'
    """

    def __init__(self, path: str | Path, layers: list[str], *, resume_at: int = 0) -> None:
        self.path, self._layers = Path(path), layers
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = keep_until(self.path, resume_at) if resume_at else ""
        temporary = self.path.with_name(self.path.name + ".part")
        temporary.write_text(kept, encoding="utf-8")
        temporary.replace(self.path)

    def write(self, tally: Tally, *, step: int, split: str) -> None:
        """Append the counts of a tally."""
        numbers = range(len(tally.num_experts))
        record = {
            "step": step,
            "split": split,
            "layers": self._layers,
            "load": [tally.load(number).tolist() for number in numbers],
            "tokens": [tally.tokens(number) for number in numbers],
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
