"""`moegate doctor`: what is installed, what the machine has, and what serves each operator."""

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moegate.cli.machine_facts import cpu_facts, installed_version, usable_cores
from moegate.ops import operators

PACKAGES = ("moegate", "torch", "numpy", "safetensors")
OPTIONAL = {
    "triton": "gpu",
    "mlxtend": "lab",
    "django": "lab",
    "trac": "lab",
    "matplotlib": "lab",
    "transformers": "hf",
    "accelerate": "hf",
    "gguf": "gguf",
    "lightning": "lightning",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Optional distribution -> the extra of moegate that installs it."""


def gpus() -> list[dict[str, Any]]:
    """The accelerators that torch sees, with their memory in GiB; Intel's have no capability."""
    found = []
    for device, backend in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        for index in range(backend.device_count()):
            properties = backend.get_device_properties(index)
            capability = f"{properties.major}.{properties.minor}" if device == "cuda" else None
            memory = round(properties.total_memory / 2**30, 1)
            name = f"{device}:{index}"
            found.append({"device": name, "name": properties.name, "memory_gib": memory, "capability": capability})
    return found


def survey() -> dict[str, Any]:
    """Everything that doctor shows, as plain values."""
    cpuinfo = Path("/proc/cpuinfo")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "optional": {name: installed_version(name) for name in OPTIONAL},
        "processor": {
            **cpu_facts(cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""),
            "usable_cores": usable_cores(),
            "torch_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "threads": {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        "gpus": gpus(),
        "operators": [asdict(operator) for operator in operators()],
    }


def versions_table(facts: dict[str, Any]) -> Table:
    """Package, version, and for what is missing the command that installs it."""
    table = Table("package", "version", title="Versions", title_justify="left")
    table.add_row("python", facts["python"])
    for name, found in facts["packages"].items():
        table.add_row(name, found or "not installed")
    for name, found in facts["optional"].items():
        table.add_row(name, found or escape(f"missing: in the clone, pip install '.[{OPTIONAL[name]}]'"))
    return table


def machine_table(facts: dict[str, Any]) -> Table:
    """Processor, threads and accelerators."""
    table = Table("part", "found", title="Machine", title_justify="left")
    processor, threads = facts["processor"], facts["threads"]
    table.add_row("platform", facts["platform"])
    table.add_row("processor", f"{processor['model']}, {processor['usable_cores']} usable cores")
    table.add_row("instruction sets", " ".join(processor["flags"]) or "unknown")
    table.add_row("torch CPU kernels", processor["torch_capability"])
    table.add_row("torch threads", f"{threads['intra_op']} intra-op, {threads['inter_op']} inter-op")
    for gpu in facts["gpus"]:
        capability = "" if gpu["capability"] is None else f", capability {gpu['capability']}"
        table.add_row(f"GPU {gpu['device']}", f"{gpu['name']}, {gpu['memory_gib']} GiB{capability}")
    if not facts["gpus"]:
        table.add_row("GPU", "none")
    return table


def operators_table(facts: dict[str, Any]) -> Table:
    """Operator, what serves it on the CPU and on a GPU, and why."""
    table = Table("operator", "does", "on the CPU", "why", "on a GPU", "note", title="Operators", title_justify="left")
    fields = ("name", "purpose", "implementation", "reason", "gpu_implementation", "gpu_reason")
    for operator in facts["operators"]:
        table.add_row(*(escape(operator[field]) for field in fields))
    return table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show versions, hardware, and which implementation serves each operator."""
    facts = survey()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = Console()
    for table in (versions_table(facts), machine_table(facts), operators_table(facts)):
        console.print(table)
