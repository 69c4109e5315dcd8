"""One fine-tuning run as data: what is trained on what, how it is attacked, and where its learning rate comes from."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lorantk import LoRA
from lorantk.validation import check_choice, check_integer, check_real

RESULTS = Path(__file__).parent / "results"
GLUE = ("sst2", "cola", "qnli", "qqp")
TASKS = ("digits", "spam", "reuters", *GLUE)
ATTACKS = ("none", "untargeted", "backdoor")
METHODS = ("full", "lora", "head", "matched")
CELL = ("task", "method", "rank", "variance", "scaling", "optimizer", "steps", "batch_size")
"""Fields that a learning rate is chosen for."""


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's numbers.

    Parameters
    ----------
    task : {"digits", "spam", "reuters", "sst2", "cola", "qnli", "qqp"}
    attack : {"none", "untargeted", "backdoor"}
    poison_rate : float
        Probability with which a training label is flipped, or a training input gets the trigger and the target label.
    method : {"full", "lora", "head", "matched"}
        All weights; adapters and head; the head alone; or all weights with the rate times tr K_LoRA / tr K_FF of the
        adapters that rank, variance and scaling describe: full fine-tuning at LoRA's effective step.
    rank : int, optional
        For "lora" and "matched".
    variance : str, optional
        Of A's entries: "peft" (uniform, 1/(3n)), "k/n" as in `lorantk.LoRA`, or "1/r", which makes E[A^T A] = I.
    scaling : str, optional
        s: a number ("1" is alpha = r, "2" is alpha = 2r), "alpha/r" or "alpha/sqrt(r)" with a number for alpha.
    optimizer : {"sgd", "adamw"}
    learning_rate : float
    steps, batch_size, seed : int
        The seed decides split, pretraining, head, adapters, batches and poison: runs that share it are pairs.

    Raises
    ------
    TypeError, ValueError
        On a value outside what is named above, or fields that do not go together.
    """

    task: str
    attack: str = "none"
    poison_rate: float = 0.0
    method: str = "full"
    rank: int | None = None
    variance: str | None = None
    scaling: str | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    steps: int = 300
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        check_choice("attack", self.attack, ATTACKS)
        check_choice("method", self.method, METHODS)
        check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        check_real("poison_rate", self.poison_rate, minimum=0.0)
        check_real("learning_rate", self.learning_rate, minimum=0.0, exclusive=True)
        for name, least in (("steps", 1), ("batch_size", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        if self.poison_rate > 1 or (self.poison_rate > 0) != (self.attack != "none"):
            raise ValueError(f"poison_rate must be 0 without an attack, else in (0, 1]; got {self.poison_rate}")
        adapter = (self.rank, self.variance, self.scaling)
        if self.method in ("lora", "matched"):
            if None in adapter:
                raise ValueError(f"method {self.method!r} needs rank, variance and scaling; got {adapter}")
            self.lora()
        elif adapter != (None, None, None):
            raise ValueError(f"method {self.method!r} takes no rank, variance or scaling; got {adapter}")
        if self.method == "matched" and self.optimizer != "sgd":
            raise ValueError("method 'matched' needs optimizer 'sgd': AdamW's step does not depend on the kernel's scale")

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def lora(self, fan_in: int | None = None) -> LoRA:
        """The adapters of the run; a layer narrower than the rank gets one of full rank."""
        assert self.rank is not None and self.variance is not None and self.scaling is not None
        rank = self.rank if fan_in is None else min(self.rank, fan_in)
        variance = 1.0 / rank if self.variance == "1/r" else self.variance
        return LoRA(rank, variance, _scaling(self.scaling, self.rank))


def _scaling(rule: str, rank: int) -> float:
    numerator, slash, denominator = rule.partition("/")
    divisors = {"": 1.0, "r": rank, "sqrt(r)": math.sqrt(rank)}
    try:
        return float(numerator) / divisors[denominator]
    except (ValueError, KeyError):
        message = f"scaling must be a number, 'alpha/r' or 'alpha/sqrt(r)' with a number for alpha; got {rule!r}"
        raise ValueError(message) from None


def load_grid(path: Path) -> dict[str, list[Run]]:
    """Runs of a YAML file, block by block: each list in a block is an axis of its product.

    `adapters`, `attacks` and `methods` are lists of mappings, each a point of several fields at once. A learning rate
    may be "selected" (chosen on clean validation data for this very cell) or "shared" (the one selected for the same
    method at its defaults: rank 8, variance "peft", scaling "1"; for "matched" that of "full").

    Raises
    ------
    ValueError, TypeError
        On a block that is no mapping, an unknown field, a value that `Run` refuses, or a rate that was not selected.
    """
    blocks = yaml.safe_load(path.read_text())
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        raise ValueError(f"{path} must map the names of blocks to mappings of fields")
    return {name: [run for point in _points(block) for run in [_run(point)]] for name, block in blocks.items()}


def _points(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes = [value if isinstance(value, list) else [value] for value in block.values()]
    points = []
    for values in itertools.product(*axes):
        point: dict[str, Any] = {}
        for key, value in zip(block, values, strict=True):
            point |= value if isinstance(value, dict) else {key: value}
        if isinstance(seeds := point.pop("seeds", None), str):
            first, _, last = seeds.partition("-")
            points += [point | {"seed": seed} for seed in range(int(first), int(last) + 1)]
        else:
            points.append(point)
    return points


def _run(point: dict[str, Any]) -> Run:
    unknown = set(point) - {field.name for field in fields(Run)}
    if unknown:
        raise ValueError(f"a block must hold fields of Run; got {sorted(unknown)}")
    rate = point.get("learning_rate")
    if rate in ("selected", "shared"):
        probe = Run(**point | {"learning_rate": 1.0})
        point = point | {"learning_rate": _selected(probe, default=rate == "shared")}
    return Run(**point)


def _selected(run: Run, default: bool) -> float:
    cell = {name: getattr(run, name) for name in CELL}
    if run.method == "matched":
        cell |= {"method": "full", "rank": None, "variance": None, "scaling": None}
    elif run.method == "lora" and default:
        cell |= {"rank": 8, "variance": "peft", "scaling": "1"}
    path = RESULTS / f"rates-{run.task}.csv"
    table = pd.read_csv(path, dtype={"variance": str, "scaling": str}) if path.exists() else pd.DataFrame(columns=CELL)
    for name, value in cell.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    if len(table) != 1:
        raise ValueError(f"no learning rate was selected for {cell} in {path.name}: python -m experiments select")
    return float(table.learning_rate.iloc[0])
