"""The tables of the documentation that say what the code holds are compared with the code."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import moegate
from moegate import config, recipes
from moegate.cli.shell import load_verb
from moegate.estimators import ESTIMATORS, Estimator
from moegate.extra import EXTRAS, Extra
from moegate.lab.training.balancing import balance_strategy
from moegate.lab.training.routers import router_spec
from moegate.noise import NOISES, Noise
from moegate.parts import Part
from moegate.scoring import SCORES, Score
from moegate.selection import SELECTIONS, Selection

ROOT = Path(__file__).parents[1]
PARTS = {
    part.__name__: part
    for part in (
        *SELECTIONS.values(),
        *SCORES.values(),
        *NOISES.values(),
        *ESTIMATORS.values(),
        *EXTRAS.values(),
        moegate.Weighting,
        moegate.Capacity,
    )
}
ROLES: dict[str, type[Part]] = {
    "noise": Noise,
    "score": Score,
    "selection": Selection,
    "weighting": moegate.Weighting,
    "estimator": Estimator,
    "capacity": moegate.Capacity,
    "extra": Extra,
}


def table_rows(path: Path, heading: str) -> Iterator[list[str]]:
    """The cells of each row of the first table below a heading."""
    section = re.split(r"^#+ ", path.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1], flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


RECIPES = {row[0].strip("`"): row[1:] for row in table_rows(ROOT / "README.md", "Recipes")}


def role_of(part: Part) -> str:
    return next(role for role, family in ROLES.items() if isinstance(part, family))


def written_parts(cell: str) -> list[Part]:
    return [eval(code, dict(PARTS)) for code in re.findall(r"`([^`]+)`", cell)]


def test_every_recipe_has_a_row() -> None:
    assert list(RECIPES) == recipes.names()


@pytest.mark.parametrize("name", recipes.names())
def test_the_parts_of_a_row_make_the_rule(name: str) -> None:
    parts = written_parts(RECIPES[name][0])
    assert moegate.RoutingRule(**{role_of(part): part for part in parts}) == recipes.get(name)()


@pytest.mark.parametrize("name", recipes.names())
def test_the_parts_of_a_row_stand_in_the_order_in_which_they_act(name: str) -> None:
    roles = [role_of(part) for part in written_parts(RECIPES[name][0])]
    assert roles == [role for role in ROLES if role in roles]


@pytest.mark.parametrize("name", recipes.names())
def test_a_row_names_the_papers_of_its_recipe(name: str) -> None:
    docstring = recipes.get(name).__doc__ or ""
    missing = [paper for paper in re.findall(r"\b\d{4}\.\d{5}\b", docstring) if paper not in RECIPES[name][1]]
    assert missing == []


def test_the_table_of_names_lists_what_from_config_understands() -> None:
    text = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(\w+)`", text))
    understood = {alias for aliases in config.ALIASES.values() for alias in aliases}
    assert sorted(understood - listed) == []


def test_the_quickstart_fits_thirty_lines() -> None:
    quickstart = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n", 1)[1].split("```", 1)[0]
    assert len(quickstart.splitlines()) <= 30


COMMANDS = re.findall(r"`moegate ([^`]+)`", (ROOT / "docs" / "articles.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_articles_is_one_that_runs(command: str) -> None:
    verb, *arguments = shlex.split(command)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert set(given) <= {name for parameter in load_verb(verb).params for name in parameter.opts}
    assert {"--router", "--balance", "--top-k"} & set(given)
    for router in given.get("--router", "topk").split(","):
        router_spec(router)
    for balance in given.get("--balance", "none").split(","):
        balance_strategy(balance)
