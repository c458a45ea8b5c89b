"""The steps of CONTRIBUTING.md are followed literally in a copy of the package, and what they add is used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(?P<language>python|text)\n(?P<body>.*?)^```$", flags=re.M | re.S)


def fences(heading: str) -> list[str]:
    """The text of each fence below a heading."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.split(f"\n### {heading}\n", 1)[1].split("\n### ", 1)[0]
    return [match["body"] for match in FENCE.finditer(section)]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be changed."""
    ignore = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(ROOT / "src" / "moegate", tmp_path / "moegate", ignore=ignore))


def insert_before(path: Path, marker: str, text: str) -> None:
    """Add text in front of the first line that starts with the marker."""
    before, after = path.read_text(encoding="utf-8").split(f"\n{marker}", 1)
    path.write_text(f"{before}\n{text}{marker}{after}", encoding="utf-8")


def run(package: Path, code: str) -> str:
    """What a fresh interpreter prints that imports the copy."""
    # The hook of an editable install would come before every path.
    check = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'ScikitBuild' not in type(f).__name__]\n"
        f"import moegate; assert moegate.__path__ == [{str(package)!r}], moegate.__path__\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "COVERAGE_"))}
    env |= {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", check + code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_selection_is_a_file_and_a_line(package: Path) -> None:
    new_file, line, use = fences("A selection family")
    assert line.count("\n") == 1
    (package / "selection" / "bottom.py").write_text(new_file, encoding="utf-8")
    insert_before(package / "selection" / "__init__.py", "from moegate.selection.candidates", line)
    run(
        package,
        "from moegate.selection import SELECTIONS, Bottom, __all__ as listed\n"
        + use
        + "assert SELECTIONS['bottom'] is Bottom\n"
        + "assert 'Bottom' in listed\n"
        + "assert moegate.RoutingRule.from_json(rule.to_json()) == rule\n",
    )


def test_a_router_is_a_function_and_a_line(package: Path) -> None:
    function, line = fences("A router")
    assert line.count("\n") == 1
    insert_before(package / "recipes.py", "_RECIPES: ", function.split("\n\n\n", 1)[1] + "\n\n")
    # The end of the table: the first line that is a closing bracket below its name.
    recipes = package / "recipes.py"
    before, table = recipes.read_text(encoding="utf-8").split("\n_RECIPES: ", 1)
    longer = table.replace("\n)\n", f"\n{line})\n", 1)
    recipes.write_text(f"{before}\n_RECIPES: {longer}", encoding="utf-8")
    code = (
        "from moegate.lab.training.config import TrainConfig\n"
        "from moegate.lab.training.routers import make_rule\n"
        "assert moegate.recipes.names()[-1] == 'plain_sigmoid'\n"
        "config = TrainConfig.create(task='image', router='plain_sigmoid', top_k=4)\n"
        "assert make_rule(config) == moegate.recipes.plain_sigmoid(4)\n"
    )
    run(package, code)


def test_a_loss_is_a_file_and_a_line_and_one_more_for_the_command_line(package: Path, tmp_path: Path) -> None:
    new_file, line, strategy = fences("A loss")
    assert line.count("\n") == strategy.count("\n") == 1
    (package / "balance" / "losses" / "squared_mean.py").write_text(new_file, encoding="utf-8")
    insert_before(package / "balance" / "losses" / "__init__.py", "from moegate.balance.losses.switch", line)
    insert_before(package / "lab" / "training" / "balancing.py", '    "none": ', strategy)
    code = (
        "import torch\n"
        "from moegate.balance import losses\n"
        "from moegate.cli import app\n"
        "assert 'squared_mean' in losses.__all__\n"
        "logits = torch.tensor([[50.0, 0.0], [50.0, 0.0]], requires_grad=True)\n"
        "loss = losses.squared_mean(moegate.route(logits, moegate.recipes.switch()))\n"
        "loss.backward()\n"
        "assert loss.item() == 2.0\n"
        f"app(['train', '-o', {str(tmp_path / 'run')!r}, '--balance', 'squared_mean', '--steps', '1'])\n"
    )
    assert "Results in" in run(package, code)
