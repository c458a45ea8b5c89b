"""What the package offers, and who may import whom."""

import ast
import importlib
import importlib.metadata
import inspect
from pathlib import Path

import pytest

import moegate

SOURCE = Path(__file__).parents[1] / "src"
LEAVES = ("ascend", "bench", "hf", "trace", "report", "lab", "cli")

PUBLIC = {
    "Capacity",
    "Edges",
    "Experts",
    "MoE",
    "Plan",
    "Routing",
    "RoutingRule",
    "SharedExperts",
    "Weighting",
    "__version__",
    "balance",
    "capacity",
    "combine",
    "config",
    "dispatch",
    "estimators",
    "extra",
    "gates",
    "metrics",
    "noise",
    "recipes",
    "records",
    "route",
    "scoring",
    "selection",
    "weighting",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((SOURCE / "moegate").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts[-1] != "__main__":
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
CORE = [name for name in MODULES if (*name.split("."), "")[1] not in LEAVES]


def imported_modules(path: Path) -> set[str]:
    """The modules that a file names in its imports, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_names_of_the_package_are_pinned() -> None:
    assert set(moegate.__all__) == PUBLIC


@pytest.mark.parametrize("name", MODULES)
def test_all_lists_names_that_exist_once(name: str) -> None:
    module = importlib.import_module(name)
    listed = list(getattr(module, "__all__", []))
    assert len(set(listed)) == len(listed)
    assert [entry for entry in listed if not hasattr(module, entry)] == []


def test_version_is_that_of_the_installed_package() -> None:
    assert moegate.__version__ == importlib.metadata.version("moegate")


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_no_leaf(name: str) -> None:
    forbidden = tuple(f"moegate.{leaf}" for leaf in LEAVES)
    offending = {m for m in imported_modules(MODULES[name]) if m in forbidden or m.startswith(forbidden)}
    assert offending == set()


def test_the_import_probe_sees_nested_imports(tmp_path: Path) -> None:
    path = tmp_path / "nested.py"
    path.write_text("def f():\n    from moegate import lab\n    import moegate.cli.shell\n", encoding="utf-8")
    assert {"moegate.lab", "moegate.cli.shell"} <= imported_modules(path)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated(name: str) -> None:
    module = importlib.import_module(name)
    for symbol, value in vars(module).items():
        if not symbol.startswith("_") and inspect.isfunction(value) and value.__module__ == name:
            hints = value.__annotations__
            missing = [p for p in inspect.signature(value).parameters if p not in hints]
            assert missing == [], f"{name}.{symbol}: {missing} have no annotation"
            assert "return" in hints, f"{name}.{symbol} has no return annotation"
