"""`moegate ascend check`: which calls a model's routing needs, who accepts them, what to watch; hostile files."""

import inspect
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import moegate
from moegate import ascend
from moegate.ascend.check import MAX_BYTES, check_config, read_config
from moegate.ascend.complaints import watch
from moegate.ascend.gate_calls import GateCall, gate_call
from moegate.ascend.generations import accepted_by
from moegate.cli.shell import app
from moegate.config import ALIASES, MODEL_TYPES

WIDE = {"TERMINAL_WIDTH": "200", "COLUMNS": "200", "NO_COLOR": "1"}
CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "model_type": "deepseek_v3", "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2", "n_routed_experts": 160, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3,
        "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0,
    },
    "deepseek_v4": {
        "model_type": "deepseek_v4", "n_routed_experts": 256, "num_experts_per_tok": 6, "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True, "routed_scaling_factor": 1.5, "mlp_layer_types": ["hash_moe"] * 3 + ["moe"] * 40,
    },
    "glm4_moe": {
        "model_type": "glm4_moe", "n_routed_experts": 160, "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1,
        "norm_topk_prob": True, "routed_scaling_factor": 2.5,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True},
    "olmoe": {"model_type": "olmoe", "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
    "gpt_oss": {
        "model_type": "gpt_oss", "num_local_experts": 128, "num_experts_per_tok": 4, "experts_per_token": 4,
        "dtype": "bfloat16",
    },
    "ernie4_5_moe": {"model_type": "ernie4_5_moe", "moe_num_experts": 64, "moe_k": 6, "moe_use_aux_free": True},
    "longcat_flash": {
        "model_type": "longcat_flash", "n_routed_experts": 512, "moe_topk": 12, "zero_expert_num": 256,
        "zero_expert_type": "identity", "routed_scaling_factor": 6.0, "router_bias": False,
    },
    "llama4": {"model_type": "llama4_text", "num_local_experts": 16, "num_experts_per_tok": 1},
    "minimax_m2": {
        "model_type": "minimax_m2", "num_local_experts": 256, "num_experts_per_tok": 8, "use_routing_bias": False,
    },
    "hunyuan_v1_moe": {"model_type": "hunyuan_v1_moe", "num_experts": 64, "moe_topk": [8] * 32},
    "relu": {"num_experts": 8, "num_experts_per_tok": 2, "scoring_func": "relu"},
    "megatron": {"num_moe_experts": 8, "moe_router_topk": 2, "moe_expert_capacity_factor": 1.5},
}  # fmt: skip
# Before 8.3, 8.3 to 2025, 2026 on A2 and A3, 2026 on the 950, 310P.
ACCEPTED = {
    "deepseek_v3": [True, True, True, True, False],
    "deepseek_v2": [False, True, True, True, False],
    "deepseek_v4": [False, False, True, True, False],
    "glm4_moe": [False, True, True, True, False],
    "qwen3_moe": [False, False, True, True, False],
    "olmoe": [False, True, True, True, False],
    "gpt_oss": [False, True, True, True, False],
    "ernie4_5_moe": [False, False, True, True, False],
    "longcat_flash": [False, True, True, True, False],
    "hunyuan_v1_moe": [False, False, True, True, False],
    "llama4": [False, True, True, True, False],
    "minimax_m2": [False, True, True, True, False],
    "megatron": [False, True, True, True, False],
}
WATCHED = {
    "deepseek_v3": {"score", "scale lost or doubled", "router in half precision", "dtype of the bias"},
    "deepseek_v2": {"score", "scale lost or doubled", "E is not 256"},
    "deepseek_v4": {"score", "scale lost or doubled", "dtype of the bias"},
    "glm4_moe": {"score", "scale lost or doubled", "E is not 256", "dtype of the bias"},
    "qwen3_moe": {"renorm on old CANN", "E is not 256", "310P"},
    "olmoe": {"310P"},
    "gpt_oss": {"router in half precision", "310P"},
    "ernie4_5_moe": {"renorm on old CANN", "E is not 256", "dtype of the bias"},
    "longcat_flash": {"scale lost or doubled", "E is not 256", "dtype of the bias", "experts without weights"},
    "hunyuan_v1_moe": {"renorm on old CANN", "E is not 256", "310P"},
    "llama4": {"score", "sigmoid without normalisation", "E is not 256", "weights on the input"},
    "minimax_m2": {"score"},
    "megatron": set(),
}
ALWAYS = {"names", "-1 with expert parallelism", "NaN in padding rows"}


@pytest.mark.parametrize("name", ACCEPTED)
def test_who_accepts_the_gate(name: str) -> None:
    gate = check_config(CONFIGS[name]).gates[-1]
    assert [one.accepted for one in gate.acceptances] == ACCEPTED[name]
    assert all(one.accepted or all(one.reasons) for one in gate.acceptances)


@pytest.mark.parametrize("name", WATCHED)
def test_what_to_watch(name: str) -> None:
    report = check_config(CONFIGS[name])
    topics = {one.topic for one in report.watches}
    if report.gates[-1].call.operator == "npu_moe_gating_top_k":
        assert "default of norm_type" in topics
    assert topics - ALWAYS - {"default of norm_type"} == WATCHED[name]
    assert topics >= ALWAYS
    assert all(one.source for one in report.watches)


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in {"megatron"}])
def test_the_written_call_runs_and_routes_as_the_rule_does(name: str) -> None:
    """The Python that is printed is executed, on moegate's own operators, and compared with ``moegate.route``."""
    config = CONFIGS[name]
    report = check_config(config)
    gate = report.gates[-1].call
    logits = torch.randn(50, report.num_experts)
    bias = torch.randn(report.num_experts) * 0.1 if gate.biased else None
    names: dict[str, Any] = {"torch_npu": ascend, "logits": logits, "correction_bias": bias}
    exec(gate.written(), names)
    routing = moegate.route(logits, report.rule, bias=bias)
    assert names["expert_idx"].tolist() == routing.expert_index.tolist()
    torch.testing.assert_close(names["y"], routing.weights, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_written_calls_that_move_rows_run(name: str) -> None:
    """With experts that change nothing, a token comes back times the sum of the weights that were not dropped."""
    report = check_config(CONFIGS[name])
    hidden, logits = torch.randn(12, 16), torch.randn(12, report.num_experts)
    names: dict[str, Any] = {
        "torch": torch, "torch_npu": ascend, "hidden": hidden, "num_tokens": 12, "capacity": 12, "logits": logits,
        "correction_bias": torch.zeros(report.num_experts),
    }  # fmt: skip
    exec(report.gates[-1].call.written(), names)
    sent, returned = dict(report.moving).values()
    exec(sent, names)
    names["expert_rows"] = names["expanded_x"]
    exec(returned, names)
    weights = torch.ones_like(names["y"]) if name == "llama4" else names["y"]
    torch.testing.assert_close(names["out"], hidden * weights.sum(-1, keepdim=True))


def test_experts_without_weights_are_scored_and_get_no_row() -> None:
    report = check_config(CONFIGS["longcat_flash"])
    assert report.num_experts == report.gates[0].call.num_experts == 512 + 256
    assert report.gates[0].call.biased
    sent, returned = dict(report.moving).values()
    assert "expert_num=768" in sent and "active_expert_range=[0, 512]" in sent
    assert "drop_pad_mode=3" in returned and "expert_idx >= 512" in returned
    for number in (-1, 1.5, True, 10**30):
        with pytest.raises((TypeError, ValueError), match="zero_expert_num"):
            check_config({**CONFIGS["longcat_flash"], "zero_expert_num": number})


# Their rules have no call on Ascend, or no rule reads their configuration; see the two tests below.
NO_CALL = {"doge", "phimoe"}
REFUSED = {"muse_spark_text": "output_multiplier"}
# Dense unless their configuration says otherwise.
DENSE_BY_DEFAULT = {"gemma4_text", "diffusion_gemma_text"}


def default_config(model_type: str) -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    values = {name: value for name, value in config.to_dict().items() if value is not None}
    return values | ({"num_experts": 8} if model_type in DENSE_BY_DEFAULT else {})


@pytest.mark.parametrize("model_type", sorted(NO_CALL))
def test_a_rule_without_a_call(model_type: str) -> None:
    assert check_config(default_config(model_type)).gates == ()


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_configuration_that_no_rule_reads(model_type: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[model_type]):
        check_config(default_config(model_type))


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES.keys() - {"llama4", "dots1"} - NO_CALL - REFUSED.keys()))
def test_the_bias_is_that_of_the_models_code(model_type: str) -> None:
    """The default configuration of every known type, by the router of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CONFIG_MAPPING[model_type]().get_text_config()
    values = default_config(model_type)
    if not values.keys() & set(ALIASES["num_experts_per_tok"]):
        values["num_experts_per_tok"] = 1
    folder = Path(inspect.getfile(type(config))).parent
    code = (folder / f"modeling_{folder.name}.py").read_text(encoding="utf-8")
    report = check_config(values)
    assert report.gates[-1].call.biased == bool(re.search("correction_bias|expert_bias", code))


def test_the_written_hash_call_runs() -> None:
    gate = check_config(CONFIGS["deepseek_v4"]).gates[0]
    assert gate.layers == "layers with hash routing"
    table = torch.stack([torch.randperm(256)[:6] for _ in range(10)])
    names: dict[str, Any] = {
        "torch_npu": ascend, "logits": torch.randn(7, 256), "input_ids": torch.randint(0, 10, (7,)), "tid2eid": table,
    }  # fmt: skip
    exec(gate.call.written(), names)
    assert names["expert_idx"].tolist() == table[names["input_ids"]].tolist()
    torch.testing.assert_close(names["y"].sum(-1), torch.full((7,), 1.5))


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name not in {"olmoe", "gpt_oss", "megatron"}])
def test_what_a_generation_accepts_is_within_the_limits_of_strict(name: str) -> None:
    """The two descriptions of the hardware's limits agree."""
    gate = check_config(CONFIGS[name]).gates[-1].call
    bias = torch.zeros(gate.num_experts) if gate.biased else None
    ascend.npu_moe_gating_top_k(
        torch.randn(1, gate.num_experts), gate.k, bias=bias, k_group=gate.k_group, group_count=gate.group_count,
        group_select_mode=gate.group_select_mode, renorm=gate.renorm, norm_type=gate.norm_type, strict=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (GateCall("npu_moe_gating_top_k", 4096, 8), "4096 experts exceed 2048"),
        (GateCall("npu_moe_gating_top_k", 8, 2, group_count=8, k_group=4, group_select_mode=1), "have no top two"),
        (GateCall("npu_moe_gating_top_k", 1040, 2, group_count=80, k_group=2), "make 2560 experts, more than 2048"),
        (GateCall("npu_moe_gating_top_k", 256, 65, hashed=True), "k=65 exceeds 64 in the hash mode"),
        (GateCall("npu_moe_gating_top_k_softmax_v2", 4096, 1025), "k=1025 exceeds 1024"),
    ],
)
def test_limits_that_hold_everywhere(call: GateCall, reason: str) -> None:
    newest = accepted_by(call)[2:4]
    assert all(any(reason in given for given in one.reasons) for one in newest)


def test_details_of_the_generations() -> None:
    softplus = GateCall("npu_moe_gating_top_k", 256, 8, norm_type=2, group_count=8, k_group=8)
    assert [one.accepted for one in accepted_by(softplus)] == [False, False, False, True, False]
    early = GateCall("npu_moe_gating_top_k", 256, 33, group_count=8, k_group=4, group_select_mode=1, norm_type=1)
    assert accepted_by(early)[0].reasons == ("k=33 exceeds 32", "it needs a bias: pass zeros")
    odd = GateCall("npu_moe_gating_top_k_softmax_v2", 130, 2)
    assert "multiple of 16" in accepted_by(odd)[4].reasons[0]


def test_a_single_normalised_weight_is_constant() -> None:
    rule = moegate.RoutingRule(
        moegate.selection.TopK(1), score=moegate.scoring.Sigmoid(), weighting=moegate.Weighting(renormalize=True)
    )
    call = gate_call(rule, 256, biased=True)
    assert call is not None
    from moegate.ascend.complaints import Subject

    assert "one expert" in {one.topic for one in watch(Subject(rule, call))}


def test_a_gate_without_an_operator() -> None:
    report = check_config(CONFIGS["relu"])
    assert (report.gates, report.moving, report.watches) == ((), (), ())
    assert gate_call(moegate.recipes.top_p(), 8, biased=False) is None
    kept = moegate.recipes.deepseek_v3()
    assert gate_call(kept, 256, biased=True) is not None
    lifted = kept.replace(selection=replace(kept.selection, dropped_score=0.0))
    assert gate_call(lifted, 256, biased=True) is None
    shown = run_check(CONFIGS["relu"])
    assert "No operator of Ascend computes this gate: ReLU()" in shown.stdout


def test_softmax_over_the_selected_in_groups_is_a_renormalised_softmax() -> None:
    rule = moegate.RoutingRule(
        moegate.selection.GroupedTopK(2, num_groups=4, groups_kept=2, group_score="max"),
        score=moegate.scoring.SoftmaxSelected(),
    )
    call = gate_call(rule, 16, biased=False)
    assert call is not None
    assert (call.norm_type, call.renorm, call.group_count, call.group_select_mode) == (0, 1, 4, 0)


def test_capacity_drops_and_pads() -> None:
    moving = dict(check_config(CONFIGS["megatron"]).moving)
    assert "drop_pad_mode=1" in moving["npu_moe_init_routing_v2"]
    assert "expert_capacity=capacity" in moving["npu_moe_init_routing_v2"]
    assert "drop_pad_mode=3" in moving["npu_moe_finalize_routing"]


def test_the_part_of_a_model_that_has_experts_is_taken() -> None:
    whole = {"model_type": "some_vl", "top_k": 50, "vision_config": {"depth": 2}, "text_config": CONFIGS["qwen3_moe"]}
    assert check_config({**whole, "dtype": "torch.bfloat16"}).num_experts == 128
    topics = {one.topic for one in check_config({**whole, "dtype": "torch.bfloat16"}).watches}
    assert "router in half precision" in topics


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "does not say how many experts there are"),
        ({"num_experts": 8}, "does not say how many experts a token goes to"),
        ({"num_experts": 10**30, "num_experts_per_tok": 2}, "is no number of experts"),
        ({"num_experts": 8, "num_experts_per_tok": 9}, "top_k=9 exceeds the 8 experts"),
        ({"num_experts": 8, "num_experts_per_tok": 2, "model_type": "unheard_of"}, "'unheard_of' is not known"),
        ({"num_experts": 8, "num_experts_per_token_": 2, "num_experts_per_tok": 2}, "Unknown configuration name"),
    ],
)
def test_configurations_that_say_too_little(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_config(config)


# The command.


def write(folder: Path, content: bytes | str) -> Path:
    path = folder / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(*arguments: str) -> Any:
    return CliRunner(env=WIDE).invoke(app, ["ascend", "check", *arguments])


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOEGATE_TRACEBACK", raising=False)


def run_check(config: dict[str, Any], *options: str) -> Any:
    Path("config.json").write_text(json.dumps(config), encoding="utf-8")
    return run("config.json", *options)


@pytest.mark.parametrize("name", CONFIGS)
def test_tables(name: str) -> None:
    shown = run_check(CONFIGS[name])
    assert shown.exit_code == 0, shown.output
    report = check_config(CONFIGS[name])
    for gate in report.gates:
        assert gate.call.written() in shown.stdout
    for one in report.watches:
        assert one.topic.split()[0] in shown.stdout


@pytest.mark.parametrize("name", CONFIGS)
def test_json(name: str) -> None:
    shown = run_check(CONFIGS[name], "--json")
    assert shown.exit_code == 0
    values = json.loads(shown.stdout)
    assert set(values) == {"rule", "num_experts", "gates", "moving", "watch"}
    assert moegate.RoutingRule.from_dict(values["rule"]) == check_config(CONFIGS[name]).rule
    assert all(isinstance(one["accepted"], bool) for gate in values["gates"] for one in gate["accepted_by"])


def test_a_folder_stands_for_its_config(tmp_path: Path) -> None:
    write(tmp_path, json.dumps(CONFIGS["olmoe"]))
    assert run(str(tmp_path)).exit_code == 0


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON"),
    "text": (b"hello", "is not JSON"),
    "binary": (bytes(range(256)), "is not JSON"),
    "list": (b"[1, 2]", "must hold a JSON object of names, got a list"),
    "number": (b"3", "got a int"),
    "deep": (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    "long number": (b'{"num_experts": ' + b"9" * 10_000 + b"}", "is not JSON"),
    "large": (b" " * (MAX_BYTES + 1), "larger than"),
    "cut off": (b'{"num_experts": 8,', "is not JSON"),
    "experts as text": (b'{"num_experts": "8", "num_experts_per_tok": 2}', "does not say how many experts"),
    "none": (b'{"num_experts": null, "num_experts_per_tok": 2}', "does not say how many experts"),
    "negative": (b'{"num_experts": -8, "num_experts_per_tok": 2}', "num_experts must be at least 1"),
    "not a number": (
        b'{"num_experts": 8, "num_experts_per_tok": 2, "routed_scaling_factor": NaN}', "must be a finite number",
    ),
    "infinite": (
        b'{"num_experts": 8, "num_experts_per_tok": 2, "routed_scaling_factor": 1e999}', "must be a finite number",
    ),
    "many experts, uneven groups": (
        b'{"num_experts": 1000000000000, "num_experts_per_tok": 2, "n_group": 7, "topk_group": 2}',
        "is no number of experts",
    ),
    "markup": (b'{"num_experts": 8, "num_experts_per_tok": 2, "[red]": 1}', "Unknown configuration name '[red]'"),
    "long name": (b'{"num_experts": 8, "' + b"n" * 10**6 + b'": 2}', "of 1000000 characters"),
    "long text": (b'{"num_experts": 8, "model_type": "' + b"n" * 10**6 + b'"}', "of 1000000 characters"),
    "nested type": (b'{"num_experts": 8, "num_experts_per_tok": 2, "model_type": {"a": 1}}', "must be text"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_gets_a_sentence(name: str, tmp_path: Path) -> None:
    content, sentence = HOSTILE[name]
    write(tmp_path, content)
    shown = run("config.json")
    assert shown.exit_code == 2, shown.output
    assert sentence in shown.stderr
    assert "Traceback" not in shown.stderr
    assert len(shown.stderr) < 3000


@pytest.mark.parametrize("path", ["none.json", "folder"])
def test_a_missing_file_gets_a_sentence(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    shown = run(path)
    assert shown.exit_code == 2
    assert "No configuration file at" in shown.stderr


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="No configuration file"):
        read_config(tmp_path / "pipe")


def test_another_task_is_a_usage_error() -> None:
    shown = CliRunner(env=WIDE).invoke(app, ["ascend", "inspect", "config.json"])
    assert shown.exit_code == 2
    assert "check" in shown.output
