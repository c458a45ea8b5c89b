"""Training gives the same losses on the compiled kernels and on the references."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moegate.lab.logging import read_metrics
from moegate.ops.library import KERNELS


def losses(folder: Path, *arguments: str, **environment: str) -> list[float]:
    env = {name: value for name, value in os.environ.items() if name != "MOEGATE_KERNEL"} | environment
    command = [sys.executable, "-m", "moegate", "train", "--output", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.skipif(not KERNELS.loaded, reason="compares the kernels with the references")
@pytest.mark.parametrize(
    "router",
    [("topk", "--balance", "aux"), ("deepseek_v3", "--balance", "none"), ("switch", "--balance", "aux")],
    ids=lambda router: router[0],
)
def test_the_same_losses(router: tuple[str, ...], tmp_path: Path) -> None:
    small = ("--task", "image", "--steps", "20", "--log-every", "1", "--batch-size", "32", "--num-layers", "2")
    arguments = ("--router", *router, *small, "--seed", "1", "--threads", "1")
    with_kernels = losses(tmp_path / "kernels", *arguments)
    without = losses(tmp_path / "references", *arguments, MOEGATE_KERNEL="0")
    assert len(with_kernels) == 20
    # Rounding differs in the last bits and grows with the steps; a wrong choice of experts would show in the second.
    assert with_kernels == pytest.approx(without, rel=2e-4)
