import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from moegate.lab.training import TrainConfig, read_config_file


def test_defaults_are_those_of_the_task() -> None:
    image, text = TrainConfig.create(task="image"), TrainConfig.create(task="text")
    assert image.hidden_size != text.hidden_size
    assert TrainConfig.create() == image


def test_every_setting_is_described() -> None:
    for field in dataclasses.fields(TrainConfig):
        assert f"        {field.name}: " in (TrainConfig.__doc__ or ""), field.name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "Unknown setting 'stepz'. Did you mean 'steps'"),
        ({"task": "txet"}, "task='txet' is not known. Did you mean 'text'"),
        ({"control": "frosen"}, "control='frosen' is not known. Did you mean 'frozen'"),
        ({"router": "topc"}, "Unknown router 'topc'. Did you mean 'topk'"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be a positive finite"),
        ({"z_loss": float("nan")}, "z_loss=nan must not be negative"),
        ({"clip_norm": float("inf")}, "clip_norm=inf must be a positive finite"),
        ({"capacity_factor": 0.0}, "capacity_factor=0.0 must be a positive"),
        ({"top_k": 9}, "top_k=9 exceeds the 8 experts"),
        ({"batch_size": 10, "accumulate": 4}, "batch_size=10 can't be split into accumulate=4"),
    ],
)
def test_what_no_run_can_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message.replace("'", ".").replace("(", ".")):
        TrainConfig.create(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "texts"}, "corpus=texts has no effect on the task 'image': leave it out, or take task='text'"),
        ({"num_heads": 4}, "num_heads=4 has no effect on the task 'image'"),
        ({"sequence_length": 256}, "sequence_length=256 has no effect on the task 'image'"),
        ({"task": "text", "image_shift": 0}, "image_shift=0 has no effect on the task 'text'"),
        ({"router": "switch", "top_k": 4}, "top_k=4 has no effect on the router 'switch', which doesn't take K"),
        ({"router": "top_p", "top_k": 2}, "top_k=2 has no effect on the router 'top_p'"),
        ({"router": "top_p", "top_k": 2, "control": "frozen"}, "top_k=2 has no effect on the router 'top_p'"),
    ],
)
def test_what_would_have_no_effect_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.create(**settings)


def test_what_has_an_effect_and_what_was_recorded_are_taken() -> None:
    assert TrainConfig.create(router="switch", top_k=4, control="dense").top_k == 4
    assert TrainConfig.create(task="text", num_heads=2, corpus="texts").num_heads == 2
    assert TrainConfig.create(corpus=None).corpus is None
    recorded = {**TrainConfig.create(router="switch").to_dict(), "top_k": 4}
    assert TrainConfig.create(**recorded).top_k == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 2.0}, r"steps=2\.0 must be int, not float"),
        ({"steps": True}, "steps=True must be int, not bool"),
        ({"learning_rate": "1e-3"}, "learning_rate='1e-3' must be int or float, not str"),
        ({"corpus": 3}, "corpus=3 must be str or None, not int"),
        ({"router": None, "balance": "aux"}, "Unknown router 'None'"),
    ],
)
def test_values_of_the_wrong_type_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        TrainConfig.create(**settings)


def test_a_whole_number_will_do_where_a_fraction_is_expected() -> None:
    assert TrainConfig.create(clip_norm=1).clip_norm == 1


def test_the_configuration_survives_json() -> None:
    config = TrainConfig.create(task="text", router="switch", corpus="/data", capacity_factor=2.0)
    assert TrainConfig.create(**json.loads(json.dumps(config.to_dict()))) == config


def test_differences_name_what_is_new_and_what_is_gone() -> None:
    config = TrainConfig.create()
    other = {**config.to_dict(), "seed": 5, "added": 1}
    del other["steps"]
    assert config.differences(other) == [
        f"steps: {config.steps} here, nothing there",
        "seed: 0 here, 5 there",
        "added: nothing here, 1 there",
    ]


def test_json_and_toml_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"top_k": 4, "router": "mixtral"}')
    (tmp_path / "a.toml").write_text('top_k = 4\nrouter = "mixtral"\n')
    assert read_config_file(tmp_path / "a.json") == {"top_k": 4, "router": "mixtral"}
    if sys.version_info >= (3, 11):
        assert read_config_file(tmp_path / "a.toml") == read_config_file(tmp_path / "a.json")


def test_without_a_toml_parser_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tomllib", None)
    (tmp_path / "a.toml").write_text("top_k = 4\n")
    with pytest.raises(ValueError, match="write the settings as JSON"):
        read_config_file(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "doesn't parse"),
        ("a.json", "[1]", "must hold a table"),
        ("a.yaml", "a: 1", r"must end in \.json or \.toml"),
    ],
)
def test_files_that_hold_no_settings_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config_file(tmp_path / name)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No configuration file"):
        read_config_file(tmp_path / "none.json")
