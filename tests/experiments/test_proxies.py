"""Proxies of digits runs: against the package's own functions, and zero where they must be."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import digits
from experiments.config import Run
from experiments.proxies import CLEAN, measure, proxies
from lorantk import fisher_trace

BACKDOOR: dict[str, Any] = {"task": "digits", "attack": "backdoor", "poison_rate": 0.02, "optimizer": "sgd", "steps": 5}
LORA: dict[str, Any] = {"method": "lora", "rank": 4, "variance": "peft", "scaling": "2"}


def test_trace_is_the_fisher_trace_of_what_is_trained() -> None:
    run = Run(**BACKDOOR, **LORA, learning_rate=0.01)
    x, y = (part[:CLEAN] for part in digits.split(run.seed).train)
    network = digits.start([run]).network(0).double()
    found = proxies(run)
    assert found["fisher_trace"] == pytest.approx(fisher_trace(network, x.double(), y).item(), rel=1e-9)
    assert found["id"] == run.id
    assert found["cosine_noise"] > 0
    assert found["kernel_drift"] > 0


def test_full_fine_tuning_has_no_noise_and_the_head_no_drift() -> None:
    full, head = (Run(**BACKDOOR, method=method, learning_rate=0.01) for method in ("full", "head"))
    table = measure([full, head, full], jobs=1).set_index("id")
    assert len(table) == 2
    assert table.loc[full.id, "cosine_noise"] == 0
    assert table.loc[head.id, "kernel_drift"] < 1e-12  # its kernel is that of the frozen features
    assert table.loc[head.id, "fisher_trace"] < table.loc[full.id, "fisher_trace"]


def test_a_run_without_attack_has_no_alignment() -> None:
    with pytest.raises(ValueError, match="must have an attack"):
        proxies(Run("digits"))
