"""The families' table beside the source of the installed transformers: nothing is missing, nothing is stale."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

import transformers
from tiny_models import every_model, model_class, tiny_model

from moegate.hf import moe_layers
from moegate.hf.catalogue import catalogue
from moegate.hf.families import FAMILIES
from moegate.hf.logits import LOGITS
from moegate.hf.received import CALLS

SOURCES = sorted((Path(transformers.__file__).parent / "models").rglob("modeling_*.py"))
WORDS = re.compile(r"expert|router(?!_jitter)|gating", re.IGNORECASE)
ROWS = {row.name: (family, row) for family, rows in FAMILIES.items() for row in rows}

# Modelling code that speaks of experts, routers or gating, and routes nothing.
NOT_MOE = {
    "bamba": "counts experts that it does not have",
    "esm": "gates the output of an attention",
    "gemma3n": "routes between streams of activations, all of which run",
    "granite_docling": "a router chooses the resolution of a page",
    "kyutai_speech_to_text": "gates the units of a dense network",
    "moshi": "gates the units of a dense network",
    "patchtsmixer": "gates features",
    "pi0": "calls a dense network its action expert",
}
# Classes that hold experts and are no blocks of their own.
AROUND_BLOCKS = {"JetMoeAttention": "holds JetMoeMoA, which is one"}

# A tensor that is added for the selection only.
SELECTION_BIAS = re.compile(r"(score_correction_bias|expert_bias|balancing_biases)$")


@cache
def candidates() -> dict[Path, ast.Module]:
    """The sources in which any of the words stands, if only in a comment."""
    texts = {path: path.read_text("utf-8") for path in SOURCES}
    return {path: ast.parse(text) for path, text in texts.items() if WORDS.search(text)}


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield value


def speaks_of_experts(tree: ast.AST) -> bool:
    return any(WORDS.search(name) for name in identifiers(tree))


def holders_of_experts(tree: ast.Module) -> set[str]:
    """The classes that make themselves an attribute ``experts``, or any of a class of experts."""
    found = set()
    for kind in tree.body:
        for node in ast.walk(kind) if isinstance(kind, ast.ClassDef) else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = next(identifiers(node.value.func), "")
                names = {target.attr for target in node.targets if isinstance(target, ast.Attribute)}
                if names and ("experts" in names or made.endswith("Experts")):
                    found.add(kind.name)
    return found


def test_every_architecture_with_experts_has_a_row_or_a_reason():
    speaking = {path.parent.name for path, tree in candidates().items() if speaks_of_experts(tree)}
    assert len(SOURCES) > 300
    assert speaking - FAMILIES.keys() == set(NOT_MOE)
    assert FAMILIES.keys() <= speaking


def test_every_class_that_holds_experts_has_a_row_or_a_reason():
    holders = set[str]().union(*map(holders_of_experts, candidates().values()))
    assert holders - ROWS.keys() == set(AROUND_BLOCKS)


@pytest.mark.parametrize(
    "source",
    [
        "class NewMoE(nn.Module):\n    def __init__(self, config):\n        self.experts = NewStack(config)",
        "class NewMoE(nn.Module):\n    def __init__(self, config):\n        self.mixture = modeling.NewExperts(config)",
    ],
)
def test_a_new_architecture_would_be_noticed(source):
    tree = ast.parse(source)
    assert speaks_of_experts(tree)
    assert holders_of_experts(tree) == {"NewMoE"}


def test_a_dense_network_is_no_architecture_with_experts():
    source = "class MLP(nn.Module):\n    def __init__(self, config):\n        self.gate_proj = nn.Linear(4, 4)"
    assert not speaks_of_experts(ast.parse(source))
    assert not holders_of_experts(ast.parse(source))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_names_what_there_is(name):
    family, row = ROWS[name]
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    assert issubclass(getattr(modeling, name), torch.nn.Module)
    assert row.model_type in transformers.CONFIG_MAPPING
    assert row.logits in LOGITS
    assert row.receives in CALLS
    assert not row.special.endswith(".")
    assert not row.no_rule.endswith(".")


def test_blocks_have_names_of_their_own():
    assert len(ROWS) == sum(len(rows) for rows in FAMILIES.values())


def test_the_families_without_a_rule_are_these():
    # Reviewed: shorten it when the rule language or transformers grows.
    assert {family for family, rows in FAMILIES.items() if any(row.no_rule for row in rows)} == {
        "nllb_moe",
        "vitpose_backbone",
    }


@pytest.mark.parametrize("name", every_model())
def test_the_parts_of_every_layer_are_found(name):
    model = tiny_model(name)
    layers = moe_layers(model)
    family = name.split(maxsplit=1)[0]
    blocks = [module for module in model.modules() if type(module).__name__ in ROWS and hasattr(module, "experts")]
    assert {id(layer.block) for layer in layers} >= {id(block) for block in blocks}
    for layer in layers:
        assert layer.family == family
        assert model.get_submodule(layer.path) is layer.block
        assert layer.name == layer.path
        assert isinstance(layer.experts, torch.nn.Module)
        assert layer.row.gate is None or isinstance(layer.gate, torch.nn.Module)
        # A family's configuration may leave its shared experts out.
        if layer.row.shared is not None and hasattr(layer.block, layer.row.shared):
            assert layer.shared_experts is getattr(layer.block, layer.row.shared)
    # Every selection bias of the model belongs to a layer, and is its own memory.
    biases = [
        tensor for path, tensor in [*model.named_parameters(), *model.named_buffers()] if SELECTION_BIAS.search(path)
    ]
    ours = [layer.bias for layer in layers if layer.bias is not None]
    assert sorted(bias.data_ptr() for bias in ours) == sorted(bias.data_ptr() for bias in biases)
    assert all(bias.ndim == 1 and isinstance(bias, Tensor) for bias in ours)


def test_the_catalogue_has_a_line_a_row():
    entries = catalogue()
    assert [entry.block for entry in entries] == [row.name for _, rows in sorted(FAMILIES.items()) for row in rows]
    for entry in entries:
        assert (entry.rule is None) == bool(entry.no_rule) == (entry.status == "no rule")
        assert entry.bias == (ROWS[entry.block][1].bias or "")


def test_every_family_has_a_tiny_model():
    assert {name.split(maxsplit=1)[0] for name in every_model()} == FAMILIES.keys()
    for name in every_model():
        assert issubclass(model_class(name), transformers.PreTrainedModel)
