"""Two gloo processes in ``DistributedDataParallel`` against one process that has all rows."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import torch

import moegate
from moegate.balance.controllers import PIDBias
from moegate.hf.training import RoutingMonitor

from .small_models import EXPERTS, LAYERS, batch, deepseek


def test_two_processes_are_one(tmp_path: Path) -> None:
    source = str(Path(moegate.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    script = str(Path(__file__).with_name("ranks.py"))
    processes = [
        subprocess.Popen([sys.executable, script, str(rank), str(tmp_path)], env=environment) for rank in (0, 1)
    ]
    try:
        codes = [process.wait(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))

    model = deepseek()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    make = functools.partial(PIDBias, kp=0.01, ki=0.01)
    with RoutingMonitor(model, bias_controller=make, balance_loss=0.05) as monitor:
        for step in range(3):
            for micro in range(2):
                inputs = batch(rows=4, seed=10 * step + micro)
                items = torch.tensor(int((inputs["labels"][:, 1:] != -100).sum()))
                # As the ranks have them: the balance of a micro-batch is that of its rank's rows.
                for rows in (slice(0, 2), slice(2, 4)):
                    part = {name: values[rows] for name, values in inputs.items()}
                    model(**part, num_items_in_batch=items).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step()
        model.eval()(**batch(seed=99))
        evaluated = monitor.evaluation()
    for number, layer in enumerate(model.model.layers):
        assert first["load"][number].tolist() == second["load"][number].tolist()
        assert first["load"][number].tolist() == monitor.window.load(number).tolist()
        assert first["evaluated"][number].tolist() == evaluated.load(number).tolist()
        assert torch.equal(first["bias"][number], second["bias"][number])
        assert torch.equal(first["bias"][number], layer.mlp.gate.e_score_correction_bias)
        torch.testing.assert_close(first["gates"][number], layer.mlp.gate.weight, rtol=1e-4, atol=1e-6)
    # One reduction a step and one for the evaluation, of all layers together.
    size = LAYERS * (EXPERTS + 3)
    assert [numel for numel in first["reduced"] if numel == size] == [size] * 4
