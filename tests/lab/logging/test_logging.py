"""Loggers: the run's own file, and the services through stand-ins for their packages."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from moegate.lab import logging
from moegate.lab.training import RunOptions, train

RECORD = {"loss": 0.5, "max_violation": [0.1, 0.2], "load": [[1, 2]], "name": "x", "flag": True}
SCALARS = {"loss": 0.5, "max_violation/layer_0": 0.1, "max_violation/layer_1": 0.2}


class Service:
    """Stands for a package: notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.summary: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> "Service":
            self.calls.append((name, args, kwargs))
            return self

        return call

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    for name in ("wandb", "mlflow", "torch.utils.tensorboard"):
        module = types.ModuleType(name)
        module.__getattr__ = service.__getattr__  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, name, module)
    return service


def test_numbers_have_names_and_tables_are_left_out() -> None:
    assert logging.scalars({"step": 3, **RECORD}) == SCALARS


def test_lines_are_read_back_and_a_cut_last_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    for start in (1, 3):
        logger = logging.JsonlLogger(path)
        for step in (start, start + 1):
            logger.log(step, RECORD)
        logger.finish({})
    path.write_text(path.read_text() + '{"step": 5, "lo')
    assert [record["step"] for record in logging.read_metrics(path)] == [1, 2, 3, 4]
    assert logging.read_metrics(path)[0] == {"step": 1, **RECORD}


def test_every_line_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    logger = logging.JsonlLogger(tmp_path / "m")
    logger.log(1, RECORD)
    assert len(logging.read_metrics(tmp_path / "m")) == 1
    logger.close()


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"Line 2 of .* is damaged"):
        logging.read_metrics(tmp_path / "m")


def test_what_comes_after_the_checkpoint_is_cut(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("".join(f'{{"step": {step}, "loss": 0.1}}\n' for step in (10, 20, 30)))
    assert logging.keep_until(tmp_path / "m", 25) == '{"step": 10, "loss": 0.1}\n{"step": 20, "loss": 0.1}\n'
    assert logging.keep_until(tmp_path / "none", 25) == ""


def test_nan_is_not_written(tmp_path: Path) -> None:
    logger = logging.JsonlLogger(tmp_path / "m")
    with pytest.raises(ValueError, match="JSON"):
        logger.log(1, {"loss": float("nan")})
    logger.close()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_said_to_be(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install '\.\[{name}\]'"):
        logging.SERVICES[name](tmp_path, "run", {})


def test_tensorboard_gets_scalars(service: Service, tmp_path: Path) -> None:
    logger = logging.TensorBoardLogger(tmp_path, "run", {"top_k": 2})
    logger.log(7, RECORD)
    logger.finish({"value": 0.9})
    assert service.named("SummaryWriter") == [((str(tmp_path / "tensorboard"),), {})]
    added = [args for args, _ in service.named("add_scalar")]
    assert added == [*((name, value, 7) for name, value in SCALARS.items()), ("evaluation/value", 0.9)]
    assert "top_k = 2" in service.named("add_text")[0][0][1]
    assert len(service.named("close")) == 1


def test_wandb_gets_scalars_and_a_summary(service: Service, tmp_path: Path) -> None:
    logger = logging.WandbLogger(tmp_path, "run", {"top_k": 2})
    logger.log(7, RECORD)
    logger.finish({"value": 0.9})
    logging.WandbLogger(tmp_path, "run", {"top_k": 2})
    logging.WandbLogger(tmp_path / "other", "run", {"top_k": 2})
    first, resumed, other = (kwargs for _, kwargs in service.named("init"))
    assert first["config"] == {"top_k": 2}
    assert first["id"] == resumed["id"] != other["id"]
    assert service.named("log") == [((SCALARS,), {"step": 7})]
    assert service.summary == {"evaluation/value": 0.9}
    assert len(service.named("finish")) == 1


def test_mlflow_gets_metrics_and_parameters(service: Service, tmp_path: Path) -> None:
    logger = logging.MlflowLogger(tmp_path, "run", {"top_k": 2})
    logger.log(7, RECORD)
    logger.finish({"value": 0.9})
    assert service.named("log_params") == [(({"top_k": 2},), {})]
    assert service.named("log_metrics") == [((SCALARS,), {"step": 7}), (({"evaluation/value": 0.9},), {})]
    assert len(service.named("end_run")) == 1


def test_an_unknown_service_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown logger 'tensorbord'\. Did you mean 'tensorboard'"):
        logging.check_services(["tensorbord"])


def test_a_run_reports_to_its_services_and_closes_them(service: Service, tmp_path: Path, tiny: Any) -> None:
    evaluation = train(tiny(), tmp_path / "run", RunOptions(services=("wandb",), title="mine"))
    assert service.named("init")[0][1]["name"] == "mine"
    steps = [kwargs["step"] for _, kwargs in service.named("log")]
    assert steps == [record["step"] for record in logging.read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert service.summary["evaluation/value"] == evaluation["value"]
    assert len(service.named("finish")) == 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["name"] == "mine"
