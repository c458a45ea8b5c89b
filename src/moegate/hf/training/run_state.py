"""The state of a balanced run beside its checkpoint: the float32 biases and their controllers, in their own file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["STATE_FILE", "load_state", "save_state"]

STATE_FILE = "moegate_routing.safetensors"


def save_state(folder: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write a state into a checkpoint's folder, whole or not at all.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(folder, {"bias": torch.zeros(2)})
        ...     load_state(folder)
        {'bias': tensor([0., 0.])}
    """
    path = Path(folder, STATE_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary)
    temporary.replace(path)


def load_state(folder: str | Path) -> dict[str, Tensor] | None:
    """The state in a checkpoint's folder; None where there is none.

    Raises:
        ValueError: the file is damaged.

    Example:
        >>> load_state("no/such/folder") is None
        True
    """
    path = Path(folder, STATE_FILE)
    if not path.is_file():
        return None
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): resume from another checkpoint.") from error
    return state
