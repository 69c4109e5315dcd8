"""Measure lorantk beside its peers; a table per question, and one JSON file each in benchmarks/results."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.report import cells
from evidence.artifacts import write_atomically

from . import (
    adapter_sweep,
    at_scale,
    attribution,
    fisher,
    full_kernel,
    growth,
    infinite_width,
    language_models,
    matrix_products,
    stacked_training,
)
from .environments import TASKS
from .races import Stable

QUESTIONS: dict[str, tuple[dict[str, dict[str, Any]], Callable[..., dict[str, Any]]]] = {
    "full-kernel": (full_kernel.SIZES, full_kernel.run),
    "adapter-sweep": (adapter_sweep.SIZES, adapter_sweep.run),
    "matrix-products": (matrix_products.SIZES, matrix_products.run),
    "at-scale": (at_scale.SIZES, at_scale.run),
    "fisher": (fisher.SIZES, fisher.run),
    "attribution": (attribution.SIZES, attribution.run),
    "language-models": (language_models.SIZES, language_models.run),
    "growth": (growth.SIZES, growth.run),
    "infinite-width": (infinite_width.SIZES, infinite_width.run),
    "stacked-training": (stacked_training.SIZES, stacked_training.run),
}
RESULTS = Path(__file__).parent / "results"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=__doc__)
def main(
    question: Annotated[list[str] | None, typer.Argument(help=f"Among {', '.join(QUESTIONS)}; all by default.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contender.")] = os.cpu_count() or 1,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that each contender takes at most.")] = 9,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny sizes, no peers.")] = False,
    results: Annotated[Path, typer.Option(help="Where the JSON files go.")] = RESULTS,
) -> None:
    """Answer the questions one after another; a file is written as soon as its question is answered."""
    unknown = sorted(set(question or []) - QUESTIONS.keys())
    if unknown:
        raise typer.BadParameter(f"question must be among {list(QUESTIONS)}; got {unknown}")
    results.mkdir(parents=True, exist_ok=True)
    with Stable(threads, ["here"] if smoke else tuple(TASKS)) as stable:
        for name in question or QUESTIONS:
            sizes, run = QUESTIONS[name]
            size = sizes["smoke" if smoke else "full"]
            start = machine(threads)
            record = {"question": name, "machine": start, "sizes": size, **run(stable, **size, repeats=repeats)}
            record["machine"]["load_after"] = os.getloadavg()[0]
            write_atomically(results / f"{name}.json", json.dumps(record, indent=1) + "\n")
            print(f"\n{name}", *map(told, record["lines"]), sep="\n", flush=True)


def machine(threads: int) -> dict[str, Any]:
    """The machine, and what else it is doing."""
    information = Path("/proc/cpuinfo")
    models = (
        [line.partition(": ")[2] for line in information.read_text().splitlines() if "model name" in line]
        if information.exists()
        else []
    )
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "card": card,
        "cpu": models[0] if models else platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "threads": threads, "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(terse=True), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("lorantk", "torch", "numpy")}, "load_before": os.getloadavg()[0],
    }  # fmt: skip


def told(line: dict[str, Any]) -> str:
    """One line of the table for a terminal."""
    text = cells(line)
    named = [f"{column} {text[column]}" for column in ("by CPU time", "ours", "theirs", "target") if text[column]]
    return f"{text['verdict'] or '-':<12} {text['what']}: {text['measured']}" + (
        f" ({', '.join(named)})" if named else ""
    )


if __name__ == "__main__":
    app()
