"""Contenders that take turns: each repeat runs all of them once, so that other load slows all of them alike."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .environments import HERE, ROOT, TASKS, NotInstalled, interpreter


@dataclass(frozen=True)
class Contender:
    """A task with its arguments, the environment it runs in, and at most how many repeats it gets after a warm-up.

    A task of minutes gets none: then its warm-up counts.
    """

    label: str
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: str = "here"
    most: int = 1000


class Failed(Exception):
    """A contender that stopped with an error, with the last line it wrote."""


class Stable:
    """Processes that serve contenders, one an environment, started when first needed and ended on exit."""

    def __init__(self, threads: int, environments: Sequence[str] = tuple(TASKS)) -> None:
        self.threads, self.environments = threads, environments
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Stable:
        self.files = ExitStack()
        self.directory = Path(self.files.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.processes):
            self._end(name)
        self.files.close()

    def ask(self, environment: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer of the environment's process to one request.

        Raises
        ------
        NotInstalled, Failed
            If there is no such process, or it ended without an answer.
        """
        process = self.processes.get(environment) or self._start(environment)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._end(environment)
            lines = self._log(environment).read_text().strip().splitlines()
            raise Failed(lines[-1] if lines else "ended without a word, as when memory runs out")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def forget(self) -> None:
        """Let every process drop what it has prepared."""
        for environment in list(self.processes):
            self.ask(environment, {"forget": True})

    def _start(self, environment: str) -> subprocess.Popen[str]:
        if environment not in self.environments:
            raise NotInstalled("peers were left out of this run")
        count = str(self.threads)
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), count)
        variables |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        if self.threads == 1:
            variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        log = self.files.enter_context(self._log(environment).open("w"))
        self.processes[environment] = subprocess.Popen(
            [interpreter(environment), HERE / "serve.py", TASKS[environment]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | variables,
        )  # fmt: skip
        return self.processes[environment]

    def _end(self, environment: str) -> None:
        process = self.processes.pop(environment)
        process.communicate()
        process.wait()

    def _log(self, environment: str) -> Path:
        return self.directory / f"{environment}.log"


def race(stable: Stable, contenders: Sequence[Contender], repeats: int) -> dict[str, dict[str, Any]]:
    """Times of the contenders, by label: all repeats, their medians, and how far results are from the first one's.

    Returns
    -------
    dict of label to record
        "seconds", "cpu_seconds" (medians), "runs" (all), "first_run", "peak_bytes", "versions", and "difference", the
        largest entry of the difference from the first contender's result relative to its largest entry (None where
        shapes differ); or "not_run" with the reason.
    """
    stable.forget()
    records: dict[str, dict[str, Any]] = {}
    first: np.ndarray[Any, Any] | None = None
    for number, contender in enumerate(contenders):
        path = stable.directory / f"{number}.npy"
        try:
            answer = stable.ask(contender.environment, _preparation(contender, path))
        except (NotInstalled, Failed) as reason:
            records[contender.label] = {"not_run": str(reason)}
            same = [c for c in contenders[:number] if c.environment == contender.environment]
            for earlier in same if isinstance(reason, Failed) else []:  # what the process had prepared ended with it
                if "runs" in records[earlier.label]:
                    stable.ask(earlier.environment, _preparation(earlier, path))
            continue
        result = np.load(path)
        path.unlink()
        first = result if first is None else first
        records[contender.label] = {
            "versions": answer["versions"], "difference": _difference(result, first), "runs": [], "first_run": answer,
        }  # fmt: skip
    for repeat in range(repeats):
        for contender in contenders:
            if repeat < contender.most and "runs" in records[contender.label]:
                answer = stable.ask(contender.environment, {"key": contender.label, "memory": repeat == 0})
                records[contender.label]["runs"].append(answer)
    for record in records.values():
        if "runs" in record:
            _summarise(record)
    return records


def _preparation(contender: Contender, path: Path) -> dict[str, Any]:
    arguments = {"arguments": contender.arguments, "key": contender.label, "path": str(path)}
    return {"prepare": contender.task, **arguments}


def _summarise(record: dict[str, Any]) -> None:
    """Peak memory from the first repeat, times from the medians of the others; a lone run gives both."""
    record["first_run"].pop("versions")
    runs = record["runs"] or [record["first_run"]]
    for key in ("seconds", "cpu_seconds"):
        record[key] = median(run[key] for run in runs[1:] or runs)
    record["peak_bytes"] = runs[0]["peak_bytes"]


def _difference(result: np.ndarray[Any, Any], first: np.ndarray[Any, Any]) -> float | None:
    if result.shape != first.shape:
        return None
    return float(np.abs(result - first).max() / max(np.abs(first).max(), np.finfo(float).tiny))


def ratio(records: Mapping[str, Mapping[str, Any]], peer: str, ours: str, key: str = "seconds") -> float | None:
    """How many times as long as ours the peer took; None where it did not run."""
    if key not in records[peer] or key not in records[ours]:
        return None
    return float(records[peer][key] / records[ours][key])
