"""Proxies of digits runs: against the package's own functions, and zero where they must be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from experiments import digits
from experiments.config import Run
from experiments.proxies import CLEAN, EPS, measure, preconditioner, proxies
from lorantk import fisher_trace, ntk
from lorantk.fisher import loss_cotangents

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


ADAMW: dict[str, Any] = {**BACKDOOR, "optimizer": "adamw", "learning_rate": 0.01}


@pytest.mark.parametrize("method", [{"method": "full"}, LORA], ids=["full", "lora"])
def test_the_preconditioner_is_what_adam_comes_to_where_it_stands_still(method: dict[str, Any]) -> None:
    run = Run(**ADAMW, **method)
    network = digits.start([run]).network(0)
    x, y = digits.poisoned(run)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    steps = 300
    for batch in digits.batches(run.seed, len(y), steps, run.batch_size):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    wanted = preconditioner(network.double(), run)
    squares = torch.where(wanted > 0, (1 / wanted - EPS).square(), 0.0).split([p.numel() for p in trained])
    for p, square in zip(trained, squares, strict=True):  # a sum over 300 batches whose squares scatter by themselves
        moment = optimizer.state[p]["exp_avg_sq"].sum().item() / (1 - 0.999**steps)
        assert square.sum().item() == pytest.approx(moment, rel=4 / steps**0.5, abs=1e-12)


def test_the_kernel_of_adam_is_the_kernel_with_its_preconditioner_as_weights() -> None:
    run = Run(**ADAMW, **LORA)
    network = digits.start([run]).network(0).double()
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    parts = preconditioner(network, run).split([p.numel() for p in trained.values()])
    weights = {name: part.view_as(p) for (name, p), part in zip(trained.items(), parts, strict=True)}
    x, y = (part[:CLEAN] for part in digits.split(run.seed).train)
    kernel = ntk(network, x.double(), weights=weights, method="jacobian")
    v = loss_cotangents(network(x.double()).detach(), y)
    trace = torch.einsum("nc,ncnd,nd->", v, kernel, v).item() / CLEAN
    found = proxies(run)
    assert found["adam_fisher_trace"] == pytest.approx(trace, rel=1e-9)
    assert "adam_fisher_trace" not in proxies(Run(**BACKDOOR, **LORA, learning_rate=0.01))
