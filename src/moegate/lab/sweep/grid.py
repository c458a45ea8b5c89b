"""The axes of a sweep and the cells they make: one training run each."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from moegate.lab.training.routers import combination_problem, router_spec
from moegate.parts import did_you_mean

CONTROLS = ("dense", "frozen")


@dataclass(frozen=True)
class Axes:
    """What a sweep varies.

    Attributes:
        top_k: values of K; routers without a fixed K run once.
        router: routing strategies by name.
        balance: balance strategies by name; routers that nothing can balance run once, with "none".
        seeds: number of seeds, from 0; a seed sets the initial weights, the data order and the router's noise.
        controls: "dense" (a feed-forward of the same active FLOPs for each K) and "frozen" (the first learned
            router of the sweep with its gate kept at random for each K).

    Raises:
        ValueError: an empty axis, or an unknown name.

    Example:
        >>> Axes(top_k=(1, 2), router=("topk",), balance=("aux",), seeds=3).controls
        ()
    """

    top_k: tuple[int, ...]
    router: tuple[str, ...]
    balance: tuple[str, ...]
    seeds: int
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("top_k", "router", "balance"):
            if not getattr(self, name):
                raise ValueError(f"The axis {name} is empty; give it at least one value.")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1.")
        for control in self.controls:
            if control not in CONTROLS:
                raise ValueError(f"Unknown control '{control}'.{did_you_mean(control, CONTROLS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the axes as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; `top_k` is None for routers without a fixed K.

    Example:
        >>> Cell("topk", 2, "aux", 0, None).id
        'topk-k2-aux-s0'
        >>> Cell("topk", 2, "none", 0, "dense").title
        'dense control K=2, seed 0'
    """

    router: str
    top_k: int | None
    balance: str
    seed: int
    control: str | None

    @property
    def id(self) -> str:
        """The name of the cell's folder."""
        return f"{self.variant}-s{self.seed}"

    @property
    def variant(self) -> str:
        """The name of the cell without its seed: cells of one variant are averaged."""
        size = "" if self.top_k is None else f"-k{self.top_k}"
        if self.control == "dense":
            return f"dense-control{size}"
        return f"{'frozen-' if self.control else ''}{self.router}{size}-{self.balance}"

    @property
    def title(self) -> str:
        """What a progress bar shows."""
        size = "" if self.top_k is None else f" K={self.top_k}"
        name = "dense control" if self.control == "dense" else self.router
        frozen = " frozen" if self.control == "frozen" else ""
        balance = "" if self.control or self.balance == "none" else f" {self.balance}"
        return f"{name}{frozen}{size}{balance}, seed {self.seed}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of the cell's run that the sweep decides."""
        values = {
            "router": self.router,
            "balance": self.balance,
            "seed": self.seed,
            "control": self.control or "none",
        }
        return values if self.top_k is None else {**values, "top_k": self.top_k}

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as JSON values."""
        return asdict(self)


class Grid(NamedTuple):
    """The cells of a sweep, and a sentence for each combination that makes no sense and is left out."""

    cells: tuple[Cell, ...]
    skipped: tuple[str, ...]


def make_grid(axes: Axes, task: str, num_experts: int) -> Grid:
    """Return the cells of a sweep, all variants of a seed before the next seed.

    A machine that slows down then slows all variants, and an interrupted sweep has something to say about each.

    Raises:
        ValueError: an unknown name, or no cell that makes sense.

    Example:
        >>> axes = Axes(top_k=(1, 2), router=("topk", "switch"), balance=("aux",), seeds=1)
        >>> [cell.id for cell in make_grid(axes, "image", 8).cells]
        ['topk-k1-aux-s0', 'topk-k2-aux-s0', 'switch-aux-s0']
    """
    skipped: list[str] = []
    variants: dict[str, Cell] = {}
    for cell in (*_routed(axes), *_controls(axes)):
        problem = combination_problem(cell.settings(), task, num_experts)
        if problem is None:
            variants.setdefault(cell.variant, cell)
        elif problem not in skipped:
            skipped.append(problem)
    if not variants:
        raise ValueError(f"No combination of these axes makes sense: {' '.join(skipped)}")
    cells = tuple(
        Cell(cell.router, cell.top_k, cell.balance, seed, cell.control)
        for seed in range(axes.seeds)
        for cell in variants.values()
    )
    return Grid(cells, tuple(skipped))


def _routed(axes: Axes) -> Iterator[Cell]:
    for router in axes.router:
        spec = router_spec(router)
        for balance in axes.balance if spec.balanced else ("none",):
            for top_k in axes.top_k if spec.uses_top_k else (None,):
                yield Cell(router, top_k, balance, 0, None)


def _controls(axes: Axes) -> Iterator[Cell]:
    for control in axes.controls:
        router = _first_learned(axes.router)
        yield from (Cell(router, top_k, "none", 0, control) for top_k in axes.top_k)


def _first_learned(routers: Sequence[str]) -> str:
    learned = [name for name in routers if router_spec(name).balanced and router_spec(name).uses_top_k]
    return learned[0] if learned else "topk"


def parse_list(text: str) -> tuple[str, ...]:
    """Return the items of a comma-separated list.

    Example:
        >>> parse_list("topk, switch,")
        ('topk', 'switch')
    """
    return tuple(item.strip() for item in text.split(",") if item.strip())


def parse_integers(name: str, items: Iterable[str]) -> tuple[int, ...]:
    """Return items as integers of at least 1.

    Raises:
        ValueError: an item that is none.

    Example:
        >>> parse_integers("--top-k", ["1", "2"])
        (1, 2)
    """
    items = tuple(items)
    for item in items:
        if not item.isascii() or not item.isdigit() or int(item) < 1:
            raise ValueError(f"{name} {','.join(items)}: '{item}' must be a whole number of at least 1.")
    return tuple(int(item) for item in items)


def parse_controls(text: str) -> tuple[str, ...]:
    """Return the controls in a comma-separated list, or those that "both" or "none" stands for.

    Raises:
        ValueError: an unknown name, or "both" or "none" beside others.

    Example:
        >>> parse_controls("both"), parse_controls("none"), parse_controls("frozen")
        (('dense', 'frozen'), (), ('frozen',))
    """
    names = parse_list(text)
    words = {"both": CONTROLS, "none": ()}
    if len(names) == 1 and names[0] in words:
        return words[names[0]]
    for name in names:
        if name in words:
            raise ValueError(f"--controls {text}: '{name}' stands alone; leave it out, or leave out the others.")
        if name not in CONTROLS:
            raise ValueError(f"Unknown control '{name}'.{did_you_mean(name, (*CONTROLS, *words))}")
    return names


def parse_settings(items: Iterable[str]) -> dict[str, Any]:
    """Return settings given as NAME=VALUE; a value that isn't JSON is a text.

    Raises:
        ValueError: an item without a name or an equals sign.

    Example:
        >>> parse_settings(["num_layers=2", "corpus=my/texts"])
        {'num_layers': 2, 'corpus': 'my/texts'}
    """
    settings: dict[str, Any] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not (name and equals):
            raise ValueError(f"--set {item}: write it as NAME=VALUE, such as num_layers=2.")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings
