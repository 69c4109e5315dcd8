"""What ran for a number, as the interpreter saw it."""

import sys

import pytest
import torch

from evidence.routes import measure
from lorantk import LoRA, delta_matrix, mlp, ntk


def square(x):
    return x**2


def test_a_route_is_the_function_that_was_asked_and_all_that_ran_for_it():
    A = LoRA(2).sample(mlp([4, 1]), 0)["0"]
    M = measure(delta_matrix, A)
    top = measure(lambda m: torch.linalg.eigvalsh(m)[-1].item(), M)
    assert top.route == ("lorantk.spectra.delta_matrix",)
    assert top.code == {"lorantk.spectra.delta_matrix"}
    assert measure(square, top).route == ("lorantk.spectra.delta_matrix", f"{__name__}.square")


def test_making_the_model_and_its_adapter_is_no_part_of_a_route():
    def kernel():
        return ntk(LoRA(1).attach(mlp([2, 1]), 0), torch.ones(1, 2))

    code = measure(kernel).code
    assert "lorantk.kernels.ntk" in code
    assert not [name for name in code if name.startswith(("lorantk.lora.", "lorantk.models.", "lorantk.batches."))]


def test_two_names_for_one_call_share_its_code():
    model, x = mlp([2, 1]), torch.ones(1, 2)
    first = measure(lambda k: k.sum().item(), measure(ntk, model, x))
    second = measure(lambda k: k.trace().item(), measure(ntk, model, x, method="jacobian", output="trace"))
    assert "lorantk.kernels.ntk" in first.shares(second)
    assert not first.shares(measure(square, 2))


def test_what_watched_before_watches_again_and_errors_pass():
    seen = []
    sys.setprofile(lambda *event: seen.append(event))
    try:
        with pytest.raises(ZeroDivisionError):
            measure(square, 0) and measure(lambda x: 1 / x, measure(square, 0))
        watching = sys.getprofile()
    finally:
        sys.setprofile(None)
    assert watching is not None


def test_what_runs_after_a_measurement_inside_another_is_seen():
    def outer():
        measure(square, 2)
        return delta_matrix(torch.ones(1, 2))

    assert "lorantk.spectra.delta_matrix" in measure(outer).code
    assert sys.getprofile() is None


def test_a_lambda_alone_is_no_route():
    with pytest.raises(ValueError, match="function must have a name"):
        measure(lambda: 1)
