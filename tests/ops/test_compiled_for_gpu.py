"""A layer on a GPU is one graph, in training too, whose operators wait for nothing; seen without a GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from triton_support import not_on_triton

pytestmark = not_on_triton("a layer is compiled for a GPU, where its operators are not interpreted")


@pytest.fixture(scope="module")
def graphs() -> dict[str, Any]:
    pytest.importorskip("triton")
    script = Path(__file__).with_name("fake_gpu.py")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MOEGATE_")}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("rule", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize(
    ("mode", "operators"),
    [("inference", ["topk_gate", "mixture"]), ("training", ["topk_gate_statistics", "trained_mixture"])],
)
def test_a_layer_is_one_graph_of_two_operators(
    rule: str, mode: str, operators: list[str], graphs: dict[str, Any]
) -> None:
    found = graphs[f"{rule}, {mode}"]
    assert found["called"] == [f"moegate.{name}.default" for name in operators]
    assert found["devices"] == ["cuda:0"]
