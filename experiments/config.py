"""One fine-tuning run as data: what is trained on what, how it is attacked, and where its learning rate comes from."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from evidence.artifacts import CorruptFile
from lorantk import LoRA
from lorantk.batches import check_choice, check_integer, check_real

from . import runs

LARGEST = 100_000
"""Most runs of a block: more is a slip of the pen."""
RESULTS = Path(__file__).parent / "results"
GLUE = ("sst2", "cola", "qnli", "qqp")
TASKS = ("digits", "digits-exact", "spam", "reuters", "reviews", "reviews-mpnet", "films", *GLUE)
EXACT = ("digits-exact", "reviews", "reviews-mpnet", "films")
"""Tasks of `protocol.md`: poison by exact count, one test set for all seeds."""

ATTACKS = ("none", "untargeted", "backdoor")
METHODS = ("full", "lora", "head", "matched")
CELL = ("task", *runs.ARM)
"""Fields that a learning rate is chosen for: at the budget of the grid of rates, then kept at every budget."""


@dataclass(frozen=True)
class Run:
    """Everything that decides a run's numbers.

    Parameters
    ----------
    task : {"digits", "digits-exact", "spam", "reuters", "reviews", "reviews-mpnet", "films"} or one of `GLUE`
    attack : {"none", "untargeted", "backdoor"}
    poison_rate : float
        Probability with which a training label is flipped, or a training input gets the trigger and the target label;
        for tasks in `EXACT` the exact share of training samples whose label changes.
    method : {"full", "lora", "head", "matched"}
        All weights; adapters and head; the head alone; or all weights, their learning rate times tr K_LoRA / tr K_FF
        of the adapters that rank, variance and scaling describe: full fine-tuning at LoRA's effective step.
    rank : int, optional
        For "lora" and "matched".
    variance : str, optional
        Of A's entries: "peft" (uniform, 1/(3n)), "k/n" as in `lorantk.lora.LoRA`, or "1/r", which makes E[A^T A] = I.
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
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, as torch's generators take it; got {self.seed}")
        object.__setattr__(self, "poison_rate", float(self.poison_rate))  # 1 and 1.0 are one run, with one id
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        if self.poison_rate > 1 or (self.poison_rate > 0) != (self.attack != "none"):
            raise ValueError(f"poison_rate must be 0 without an attack, else in (0, 1]; got {self.poison_rate}")
        adapter = (self.rank, self.variance, self.scaling)
        if self.method in ("lora", "matched"):
            if None in adapter:
                raise ValueError(f"method {self.method!r} needs rank, variance and scaling; got {adapter}")
            for name in ("variance", "scaling"):
                if not isinstance(value := getattr(self, name), str):
                    raise TypeError(f"{name} must be a string such as '1/n' or '1'; got {value!r}")
            self.lora()
        elif adapter != (None, None, None):
            raise ValueError(f"method {self.method!r} takes no rank, variance or scaling; got {adapter}")
        if self.method == "matched" and self.optimizer != "sgd":
            raise ValueError(
                "method 'matched' needs optimizer 'sgd': AdamW's step does not depend on the kernel's scale"
            )

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name the run."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def exact(self) -> bool:
        """Whether poison is counted and not drawn."""
        return self.task in EXACT

    def lora(self, fan_in: int | None = None) -> LoRA:
        """The adapters of the run; a layer narrower than the rank gets one of full rank."""
        assert self.rank is not None
        assert self.variance is not None
        assert self.scaling is not None
        rank = self.rank if fan_in is None else min(self.rank, fan_in)
        variance = 1.0 / rank if self.variance == "1/r" else self.variance
        return LoRA(rank, variance, _scaling(self.scaling, self.rank))


def _scaling(rule: str, rank: int) -> float:
    numerator, _, denominator = rule.partition("/")
    divisors = {"": 1.0, "r": rank, "sqrt(r)": math.sqrt(rank)}
    try:
        return float(numerator) / divisors[denominator]
    except (ValueError, KeyError):
        message = f"scaling must be a number, 'alpha/r' or 'alpha/sqrt(r)' with a number for alpha; got {rule!r}"
        raise ValueError(message) from None


class UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader, except that a key that stands twice in a mapping is an error, not a replacement."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    "in a mapping", node.start_mark, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_grid(path: Path, results: Path = RESULTS) -> dict[str, list[Run]]:
    """Runs of a YAML file, block by block: each list in a block is an axis of its product.

    `adapters`, `attacks` and `methods` are lists of mappings, each a point of several fields at once; `seeds` is a
    range such as "0-19", both ends included. A learning rate may be chosen on clean validation data and read in
    `results`: "selected" for this very cell, "shared" for the method over all its ranks (with PEFT's variance and
    s = 1), or "full" for full fine-tuning. A "matched" run takes that of full fine-tuning under each name.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        Without such a file; on a block that is no mapping, an unknown or missing field, a value that `Run` refuses, or
        a learning rate that was not selected.
    """
    try:
        blocks = yaml.load(path.read_bytes(), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        raise ValueError(f"{path} must map the names of blocks to mappings of fields")
    rates = functools.cache(lambda task: read_rates(results / f"rates-{task}.csv"))
    grid: dict[str, list[Run]] = {}
    for name, block in blocks.items():
        try:
            grid[name] = [_run(point, rates) for point in _points(block)]
        except CorruptFile:
            raise
        except (TypeError, ValueError) as error:
            raise type(error)(f"block {name!r} of {path.name}: {error}") from error
    return grid


def read_rates(path: Path) -> dict[tuple[Any, ...], float]:
    """The selected learning rate of each cell, keyed by the values of the fields in `CELL`; empty without a file."""
    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype={"variance": str, "scaling": str}, float_precision="round_trip").astype(object)
    except ValueError as error:  # as pandas' errors are
        raise CorruptFile(path, 1, f"no table of learning rates: {error}") from error
    table = table.where(table.notna(), None)
    if missing := {*CELL, "learning_rate"} - set(table.columns):
        raise CorruptFile(path, 1, f"a table of learning rates has columns {', '.join(sorted(missing))} too")
    return {tuple(row[name] for name in CELL): row["learning_rate"] for row in table.to_dict("records")}


def cell(run: Run, **others: object) -> tuple[Any, ...]:
    """Values of the fields in `CELL`, those in `others` in their place."""
    return tuple(others.get(name, getattr(run, name)) for name in CELL)


def _points(block: Mapping[str, Any]) -> list[dict[str, Any]]:
    axes: list[list[dict[str, Any]]] = []
    for key, value in block.items():
        if key in ("adapters", "attacks", "methods"):
            if not isinstance(value, list) or not all(isinstance(point, dict) for point in value):
                raise ValueError(f"{key} must be a list of mappings; got {value!r}")
            axes.append(value)
        elif key == "seeds":
            axes.append([{"seed": seed} for seed in _seeds(value)])
        else:
            axes.append([{key: entry} for entry in (value if isinstance(value, list) else [value])])
        if not axes[-1]:
            raise ValueError(f"{key} must hold at least one value; got {value!r}")
    if (size := math.prod(map(len, axes))) > LARGEST:
        raise ValueError(f"a block must come to at most {LARGEST} runs; got {size}")
    return [dict(itertools.chain(*(part.items() for part in parts))) for parts in itertools.product(*axes)]


def _seeds(text: object) -> range:
    match = re.fullmatch(r"(\d+)-(\d+)", str(text))
    if not match or int(match[1]) > int(match[2]):
        raise ValueError(f"seeds must be a range such as '0-19', both ends included; got {text!r}")
    if int(match[2]) - int(match[1]) >= LARGEST:
        raise ValueError(f"seeds must be at most {LARGEST} numbers; got {text!r}")
    return range(int(match[1]), int(match[2]) + 1)


def _run(point: dict[str, Any], rates: Callable[[str], Mapping[tuple[Any, ...], float]]) -> Run:
    names = {field.name for field in fields(Run)}
    if unknown := set(point) - names:
        raise ValueError(
            f"a block must hold fields of Run, or adapters, attacks, methods, seeds; got {sorted(unknown)}"
        )
    if "task" not in point:
        raise ValueError(f"a block must name its task, one of {', '.join(TASKS)}")
    point = {key: _number(value) if key in ("learning_rate", "poison_rate") else value for key, value in point.items()}
    rule = point.get("learning_rate")
    if rule not in ("selected", "shared", "full"):
        return Run(**point)
    run = Run(**point | {"learning_rate": 1.0})
    if run.method == "matched" or rule == "full":
        wanted = cell(run, method="full", rank=None, variance=None, scaling=None)
    elif run.method == "lora" and rule == "shared":
        wanted = cell(run, rank=None, variance="peft", scaling="1")
    else:
        wanted = cell(run)
    if wanted not in (known := rates(run.task)):
        described = ", ".join(f"{name} {value}" for name, value in zip(CELL, wanted, strict=True))
        raise ValueError(f"no learning rate was selected for {described}: python -m experiments select {run.task}")
    return replace(run, learning_rate=known[wanted])


def _number(value: object) -> object:
    """The value as a number where it is text that looks like one: YAML 1.1 reads 1e-3 as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
