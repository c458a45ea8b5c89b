"""Write docs/reference from the docstrings of the package; fail when a public name has none.

Public names are what a public module lists in `__all__` (or, without one, what it defines without a leading
underscore), with the public members of each class. All modules right below `moegate` are public; deeper down, a
package with an `__all__` hides the modules that it doesn't list. One page a module, and one for the command line.
"""

import ast
import importlib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "moegate"
TARGET = ROOT / "docs" / "reference"
MAX_SIGNATURE_LINE = 88

SECTIONS = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?|Sources?|References?|Note|Shape):\s*$")


def module_names() -> list[str]:
    """Every public module of the package, by path, without importing anything."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        is_verb = parts[:2] == ("moegate", "cli")  # the verbs have one page, made from their --help
        if not is_verb and not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return sorted(names)


def is_public(name: str) -> bool:
    """Whether no package above the module, the top level apart, hides it."""
    parts = name.split(".")
    for depth in range(2, len(parts)):
        listed = getattr(sys.modules[".".join(parts[:depth])], "__all__", None)
        if listed is not None and parts[depth] not in listed:
            return False
    return True


def public_names(module: ModuleType) -> list[str]:
    """The names a module offers: its `__all__`, or what it defines without a leading underscore."""
    if hasattr(module, "__all__"):
        return [name for name in module.__all__ if name != "__version__"]
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def home_of(module: ModuleType, name: str) -> str:
    """The module whose page describes a class or function: the highest one that offers it."""
    value = getattr(module, name)
    defined_in = getattr(value, "__module__", None)
    if defined_in not in module_names() or not (inspect.isclass(value) or inspect.isfunction(value)):
        return module.__name__
    parts = defined_in.split(".")
    for depth in range(1, len(parts) + 1):
        offering = sys.modules[".".join(parts[:depth])]
        if name in public_names(offering) and getattr(offering, name) is value and is_public(offering.__name__):
            return offering.__name__
    return module.__name__


def constant_doc(module: ModuleType, name: str) -> str | None:
    """The string after the assignment of a constant, here or in the module that it is imported from."""
    if module.__file__ is None:
        return None
    body = ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    for statement in body:
        imported = isinstance(statement, ast.ImportFrom) and name in [alias.name for alias in statement.names]
        if imported and statement.module in sys.modules:
            return constant_doc(sys.modules[statement.module], name)
    for statement, after in pairwise(body):
        is_plain = isinstance(statement, ast.Assign)
        targets = statement.targets if is_plain else [getattr(statement, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == name for target in targets)
        if named and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return str(after.value.value)
    return None


def own_doc(value: Any) -> str | None:
    """The docstring someone wrote; None for the one that dataclasses and named tuples make up."""
    doc = inspect.cleandoc(value.__doc__) if value.__doc__ else None
    made_up = inspect.isclass(value) and doc is not None and doc.startswith(f"{value.__name__}(")
    return None if made_up else doc


def inherited_doc(owner: type, name: str) -> str | None:
    """A member's docstring, or the one of the moegate class whose member it overrides."""
    for cls in owner.__mro__:
        if cls.__module__.startswith("moegate") and name in vars(cls):
            member = vars(cls)[name]
            member = getattr(member, "__func__", member)
            if member.__doc__:
                return inspect.cleandoc(member.__doc__)
    return None


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class itself defines."""
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)
        if not name.startswith("_") and (inspect.isfunction(function) or isinstance(member, property)):
            yield name, member


def signature(name: str, value: Any) -> str:
    """The call as Python, one parameter a line when it is long, annotations without their module paths."""
    try:
        shown = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parts = [re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", str(p)) for p in shown.parameters.values()]
    parts = [re.sub(r"<(?:function|object) (\w+)[^>]*>", r"\1", part) for part in parts]
    kinds = [p.kind for p in shown.parameters.values()]
    keyword_only = [i for i, kind in enumerate(kinds) if kind is inspect.Parameter.KEYWORD_ONLY]
    if keyword_only and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(keyword_only[0], "*")
    annotation = shown.return_annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    shortened = re.sub(r"\b(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)
    returns = "" if annotation is inspect.Signature.empty else f" -> {shortened}"
    one_line = f"{name}({', '.join(parts)}){returns}"
    if len(one_line) <= MAX_SIGNATURE_LINE:
        return one_line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def fence_doctests(lines: list[str]) -> list[str]:
    """Put each run of doctest lines, up to the next blank one, into a code fence."""
    out: list[str] = []
    inside = False
    for line in lines:
        if line.startswith(">>> ") and not inside:
            out += ["", "```pycon"]
            inside = True
        elif inside and not line.strip():
            out.append("```")
            inside = False
        out.append(line)
    return [*out, "```"] if inside else out


def entries(lines: list[str]) -> list[str]:
    """The entries of an Args, Attributes or Raises section as a list."""
    out = [""]
    for line in lines:
        if line.startswith(" ") or not line.strip():
            out.append(line)
        else:
            out.append(re.sub(r"^([\w*., \[\]]+?)(?: \(([^)]*)\))?: ", r"- `\1`: ", line))
    return out


def markdown(doc: str) -> str:
    """A docstring with its sections as Markdown."""
    out: list[str] = []
    lines = doc.splitlines()
    while lines:
        line = lines.pop(0)
        section = SECTIONS.match(line)
        if section is None:
            out.append(line)
            continue
        body: list[str] = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        dedented = textwrap.dedent("\n".join(body)).strip("\n").splitlines()
        listed = section[1] in ("Args", "Attributes", "Raises")
        out += [f"**{section[1]}**", "", *(entries(dedented) if listed else dedented), ""]
    return "\n".join(fence_doctests(out)).strip() + "\n"


class Reference:
    """The pages, and the names that lack a docstring."""

    def __init__(self) -> None:
        self.undocumented: list[str] = []

    def documented(self, name: str, doc: str | None) -> str:
        """The docstring as Markdown; a missing one is noted."""
        if doc is None or not doc.strip():
            self.undocumented.append(name)
            return ""
        return markdown(doc)

    def class_members(self, title: str, owner: type) -> Iterator[str]:
        """One section a public method or property."""
        for name, member in members(owner):
            yield f"### {owner.__name__}.{name}\n"
            if not isinstance(member, property):
                function = getattr(member, "__func__", member)
                yield f"```python\n{signature(name, function)}\n```\n"
            yield self.documented(f"{title}.{name}", inherited_doc(owner, name))

    def symbol(self, module: ModuleType, name: str) -> Iterator[str]:
        """One section a public name."""
        value = getattr(module, name)
        title = f"{module.__name__}.{name}"
        yield f"## {name}\n"
        if inspect.isclass(value) or inspect.isfunction(value):
            yield f"```python\n{signature(name, value)}\n```\n"
            yield self.documented(title, own_doc(value))
        else:
            yield self.documented(title, constant_doc(module, name))
        if inspect.isclass(value):
            yield from self.class_members(title, value)

    def page(self, module: ModuleType) -> str | None:
        """The page of one module; None when all its names are described elsewhere."""
        title = f"# {module.__name__}\n"
        introduction = self.documented(module.__name__, own_doc(module))
        links, sections = [], []
        package, _, child = module.__name__.rpartition(".")
        is_offered = package and child in getattr(sys.modules.get(package), "__all__", [])
        is_package = hasattr(module, "__path__")
        for name in public_names(module):
            home = home_of(module, name)
            if inspect.ismodule(getattr(module, name)):
                links.append(f"- [{name}]({getattr(module, name).__name__}.md)")
            elif home != module.__name__:
                links.append(f"- [{name}]({home}.md#{name.lower()})")
            else:
                sections += self.symbol(module, name)
        if not sections and not is_package and not is_offered:
            return None
        return "\n".join([title, introduction, *links, "", *sections])


def command_line_page() -> str:
    """The page of the command line, from what `--help` prints."""
    from typer.testing import CliRunner

    from moegate.cli.shell import VERBS, app

    # A fixed width and a terminal without colours make the page the same everywhere.
    runner = CliRunner(env={"TERMINAL_WIDTH": "84", "COLUMNS": "84", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Command line\n"]
    for verb in VERBS:
        shown = runner.invoke(app, [verb, "--help"], prog_name="moegate")
        if shown.exit_code != 0:
            raise SystemExit(f"moegate {verb} --help failed: {shown.output}{shown.exception!r}")
        parts.append(f"## moegate {verb}\n\n```text\n{shown.output.strip()}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write all pages; 1 when a public name has no docstring."""
    reference = Reference()
    modules = [importlib.import_module(name) for name in module_names()]
    found = {m.__name__: reference.page(m) for m in modules if is_public(m.__name__)}
    pages = {name: text for name, text in found.items() if text is not None}
    introductions = {name: (own_doc(sys.modules[name]) or "").split("\n\n")[0] for name in pages}
    rows = [f"- [{name}]({name}.md): {' '.join(text.split())}" for name, text in introductions.items()]
    rows.append("- [Command line](command-line.md): the verbs and their options.")
    pages["command-line"] = command_line_page()
    pages["index"] = "# Reference\n\nMade from the docstrings.\n\n" + "\n".join(rows) + "\n"

    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    for name, text in pages.items():
        (TARGET / f"{name}.md").write_text(text, encoding="utf-8")
    for name in reference.undocumented:
        print(f"undocumented: {name}", file=sys.stderr)
    print(f"{len(pages)} pages in {TARGET.relative_to(ROOT)}, {len(reference.undocumented)} undocumented names")
    return 1 if reference.undocumented else 0


if __name__ == "__main__":
    sys.exit(main())
