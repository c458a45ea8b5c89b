from typing import Any

import pytest

from moegate.lab.sweep import Axes, Cell, make_grid, parse_controls, parse_integers, parse_list, parse_settings


def axes(**changes: Any) -> Axes:
    base = {"top_k": (1, 2), "router": ("topk",), "balance": ("aux",), "seeds": 2, "controls": ()}
    return Axes(**{**base, **changes})


def ids(found: Axes, task: str = "image", num_experts: int = 8) -> list[str]:
    return [cell.id for cell in make_grid(found, task, num_experts).cells]


def test_all_variants_of_a_seed_come_before_the_next_seed() -> None:
    assert ids(axes(router=("topk", "mixtral"))) == [
        f"{router}-k{k}-aux-s{seed}" for seed in (0, 1) for router in ("topk", "mixtral") for k in (1, 2)
    ]


def test_routers_without_k_run_once_and_those_without_balance_unbalanced() -> None:
    found = ids(axes(router=("switch", "hash"), balance=("aux", "none"), seeds=1))
    assert found == ["switch-aux-s0", "switch-none-s0", "hash-k1-none-s0", "hash-k2-none-s0"]


def test_controls_come_for_each_k_without_balance() -> None:
    found = ids(axes(router=("hash", "mixtral"), seeds=1, controls=("dense", "frozen")))
    assert found[-4:] == [
        "dense-control-k1-s0",
        "dense-control-k2-s0",
        "frozen-mixtral-k1-none-s0",
        "frozen-mixtral-k2-none-s0",
    ]


def test_what_makes_no_sense_is_left_out_with_a_reason() -> None:
    grid = make_grid(axes(top_k=(2, 8), balance=("quantile", "aux_sequence")), "image", 8)
    assert {cell.variant for cell in grid.cells} == {"topk-k2-quantile"}
    assert len(grid.skipped) == 2
    assert any("K is all 8 experts" in sentence for sentence in grid.skipped)
    assert any("images have none" in sentence for sentence in grid.skipped)


def test_a_grid_without_any_cell_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No combination.*top_k=9 exceeds the 8 experts"):
        make_grid(axes(top_k=(9,)), "image", 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": ()}, "axis top_k is empty"),
        ({"router": ()}, "axis router is empty"),
        ({"seeds": 0}, "seeds=0 must be at least 1"),
        ({"controls": ("thawed",)}, "Unknown control 'thawed'"),
    ],
)
def test_axes_that_say_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        axes(**changes)


@pytest.mark.parametrize(("changes", "name"), [({"router": ("tpk",)}, "tpk"), ({"balance": ("axu",)}, "axu")])
def test_unknown_names_are_refused(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown .* '{name}'. Did you mean"):
        make_grid(axes(**changes), "image", 8)


def test_titles_say_what_differs() -> None:
    assert Cell("topk", 4, "aux", 1, None).title == "topk K=4 aux, seed 1"
    assert Cell("topk", 4, "none", 0, "frozen").title == "topk frozen K=4, seed 0"
    assert Cell("switch", None, "none", 0, None).title == "switch, seed 0"


def test_lists_are_parsed() -> None:
    assert parse_list(" a,b ,,c") == ("a", "b", "c")
    assert parse_integers("--top-k", ("1", "10")) == (1, 10)
    for wrong in ("0", "-1", "1.5", "two", "²", ""):
        with pytest.raises(ValueError, match="--top-k"):
            parse_integers("--top-k", (wrong,))


def test_settings_are_parsed() -> None:
    found = parse_settings(["steps=3", "learning_rate=1e-3", "corpus=a=b", "capacity_factor=null"])
    assert found == {"steps": 3, "learning_rate": 1e-3, "corpus": "a=b", "capacity_factor": None}
    for wrong in ("steps", "=3", ""):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            parse_settings([wrong])


@pytest.mark.parametrize(
    ("text", "controls"),
    [
        ("both", ("dense", "frozen")),
        ("none", ()),
        ("", ()),
        ("dense, frozen", ("dense", "frozen")),
        ("frozen", ("frozen",)),
    ],
)
def test_controls_have_short_words(text: str, controls: tuple[str, ...]) -> None:
    assert parse_controls(text) == controls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frosen", "Unknown control 'frosen'. Did you mean 'frozen'"),
        ("dense,bth", "Unknown control 'bth'. Did you mean 'both'"),
        ("boht", "Unknown control 'boht'. Did you mean 'both'"),
        ("non", "Did you mean 'none'"),
        ("both,dense", "'both' stands alone"),
        ("dense,none", "'none' stands alone"),
    ],
)
def test_controls_that_do_not_exist_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_controls(text)
