"""The kernel as an operator, with weights, selections, diagonals and batches from iterables, against `ntk`."""

import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import batches, gaussian, loras, networks, relative, seeds
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lorantk import LoRA, TangentKernel, mlp, ntk

NET, X, OTHER = mlp([3, 6, 2], bias=True).double(), gaussian(5, 3, seed=0), gaussian(4, 3, seed=1)
METHODS = ("layerwise", "jacobian", "vector_products")


class Words(nn.Module):
    """An embedding, a norm and a convolution over positions, behind one another."""

    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Embedding(7, 4, padding_idx=0), nn.LayerNorm(4)
        self.conv, self.head = nn.Conv1d(4, 3, 2), nn.Linear(3, 2)

    def forward(self, ids):
        return self.head(torch.tanh(self.conv(self.norm(self.token(ids)).mT)).mean(2))


def words():
    torch.manual_seed(0)
    return Words().double(), torch.randint(0, 7, (5, 6), generator=torch.Generator().manual_seed(2))


@given(st.data(), networks(), seeds, st.sampled_from(METHODS))
def test_products_diagonal_and_trace_are_those_of_the_dense_kernel(data, model, seed, method):
    lora = data.draw(st.one_of(st.none(), loras(model)))
    model = model if lora is None else lora.attach(model, seed)
    d = model[0].in_features if lora is None else model[0].base.in_features if hasattr(model[0], "base") else None
    x1, x2 = data.draw(batches(d or model[0].in_features)), data.draw(batches(d or model[0].in_features))
    kernel = TangentKernel(model, x1, x2, method=method)
    dense = ntk(model, x1, x2, method="jacobian").flatten(2).flatten(0, 1)
    assert kernel.shape == dense.shape
    assert relative(kernel @ torch.eye(dense.shape[1]).double(), dense) < 1e-10
    assert relative(kernel.T @ torch.eye(dense.shape[0]).double(), dense.T) < 1e-10
    same = TangentKernel(model, x1, method=method)
    square = same.dense()
    assert relative(same.diagonal(), square.diagonal()) < 1e-10
    assert same.trace().item() == pytest.approx(square.trace().item(), rel=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_layer_as_an_operator_and_on_the_diagonal(method):
    model, ids = words()
    dense = ntk(model, ids, method="jacobian").flatten(2).flatten(0, 1)
    kernel = TangentKernel(model, ids, method=method)
    v = gaussian(10, 3, seed=4)
    assert relative(kernel @ v, dense @ v) < 1e-10
    blocks = dense.reshape(5, 2, 5, 2)
    expected = torch.stack([blocks[i, :, i] for i in range(5)])
    assert relative(ntk(model, ids, output="diagonal", method=method), expected) < 1e-10
    other = ids.flip(0)
    between = ntk(model, ids, other, method="jacobian")
    expected = torch.stack([between[i, :, i] for i in range(5)])
    assert relative(ntk(model, ids, other, output="diagonal", method=method), expected) < 1e-10


def test_leading_eigenvalues_are_those_of_the_dense_kernel():
    kernel = TangentKernel(NET, X)
    exact = torch.linalg.eigvalsh(kernel.dense()).flip(0)
    assert relative(kernel.eigenvalues(4), exact[:4]) < 1e-10
    assert torch.equal(kernel.eigenvalues(4), kernel.eigenvalues(4))
    with pytest.raises(ValueError, match="k must be below n C = 10"):
        kernel.eigenvalues(10)
    with pytest.raises(ValueError, match="needs the kernel of one batch with itself"):
        TangentKernel(NET, X, OTHER).trace()
    with pytest.raises(ValueError, match=r"v must be a tensor of shape \(10,\)"):
        kernel @ torch.ones(3)


def test_diagonal_in_blocks_and_its_limits():
    whole = ntk(NET, X, output="diagonal")
    assert relative(ntk(NET, X, output="diagonal", max_memory="3KB"), whole) < 1e-12
    with pytest.raises(ValueError, match="pairs each row of x1 with one of x2"):
        ntk(NET, X, OTHER, output="diagonal")


@pytest.mark.parametrize("method", METHODS)
def test_weights_precondition_the_kernel(method):
    tuned = LoRA(2).attach(NET)
    parts = {name: ntk(NET, X, layers=[name], method="jacobian") for name in ("0", "2")}
    weighted = ntk(NET, X, weights={r"0\..*": 4.0, "2.weight": 0.25, "2.bias": 0.25}, method=method)
    assert relative(weighted, 4 * parts["0"] + parts["2"] / 4) < 1e-10
    for p in tuned.parameters():
        p.data = gaussian(*p.shape, seed=p.numel()) if p.requires_grad else p.data
    ups, downs = (ntk(tuned, X, weights={r".*\.up\..*": a, r".*\.down\..*": b}) for a, b in ((1.0, 0.0), (0.0, 1.0)))
    plus = ntk(tuned, X, weights={r".*\.up\..*": 16.0}, method=method)  # LoRA+
    assert relative(plus, 16 * ups + downs) < 1e-10
    assert relative(ups + downs, ntk(tuned, X)) < 1e-10


def test_a_weight_for_each_entry_is_a_diagonal_preconditioner():
    D = gaussian(6, 3, seed=5).square()
    J = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(NET, {"0.weight": w}, (X,)), NET[0].weight
    )
    expected = torch.einsum("ncoi,oi,mdoi->ncmd", J, D, J)
    for method in ("auto", "jacobian", "vector_products"):
        assert (
            relative(ntk(NET, X, layers=["0"], weights={"0.weight": D, "0.bias": 0.0}, method=method), expected) < 1e-10
        )
    v = gaussian(10, seed=6)
    kernel = TangentKernel(NET, X, layers=["0"], weights={"0.weight": D, "0.bias": 0.0})
    assert relative(kernel @ v, expected.flatten(2).flatten(0, 1) @ v) < 1e-10
    with pytest.raises(ValueError, match=r"'layerwise' needs .* a weight for each of its entries"):
        ntk(NET, X, layers=["0"], weights={"0.weight": D}, method="layerwise")


class Several(nn.Module):
    """A model of (n, T, C) logits in a mapping."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x):
        return {"scores": self.head(torch.tanh(self.inner(x)))}


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_selected_outputs(method):
    model, x = Several().double(), gaussian(4, 6, 3, seed=7)

    def last_two(outputs):
        return outputs["scores"][:, -1, :2]

    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return last_two(self.inner(x))

    truth = ntk(Picked(), x, method="jacobian")
    assert relative(ntk(model, x, select=last_two, method=method), truth) < 1e-10
    part = ntk(model, x, select=last_two, layers=["inner"], weights={"inner.bias": 2.0}, method=method)
    expected = ntk(Picked(), x, layers=["inner.inner"], weights={"inner.inner.bias": 2.0}, method="jacobian")
    assert relative(part, expected) < 1e-10
    with pytest.raises(ValueError, match="model must map 4 inputs"):
        ntk(model, x)


def test_batches_from_a_loader_are_one_batch():
    loader = DataLoader(TensorDataset(X), batch_size=2)
    assert torch.equal(ntk(NET, loader), ntk(NET, X))
    assert torch.equal(ntk(NET, [X[:2], X[2:]], iter([OTHER])), ntk(NET, X, OTHER))
    diagonal = ntk(NET, iter([X[:2], X[2:]]), iter([X.flip(0)]), output="diagonal")
    assert torch.equal(diagonal, ntk(NET, X, X.flip(0), output="diagonal"))
    with pytest.raises(ValueError, match="batches must hold the same tensors"):
        ntk(NET, [{"a": X}, {"b": X}])
    with pytest.raises(TypeError, match=r"x1 must be a torch\.Tensor"):
        ntk(NET, [1.0, 2.0])


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"9.weight": 1.0}, ValueError, "names no trainable parameter"),
        ({"0.weight": 1.0, "0.*": 1.0}, ValueError, "names it twice"),
        ({"0.weight": -1.0}, ValueError, "must be finite and at least 0"),
        ({"0.weight": float("nan")}, ValueError, "must be finite and at least 0"),
        ({"0.weight": torch.ones(2, 2)}, ValueError, "must have the parameter's shape"),
        ({"0.weight": "much"}, TypeError, "must be a number or a tensor"),
    ],
)
def test_bad_weights_are_named(weights, error, message):
    with pytest.raises(error, match=message):
        ntk(NET, X, weights=weights)


@pytest.mark.slow
def test_chunks_of_a_dask_array_survive_a_killed_worker():
    distributed = pytest.importorskip("distributed")
    model, x = mlp([3, 8, 2]).double(), gaussian(8, 3, seed=3)
    expected = ntk(model, x).flatten(2).flatten(0, 1)
    cluster = distributed.LocalCluster(
        2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
    )
    with cluster, distributed.Client(cluster) as client:
        array = TangentKernel(model, x).to_dask(3)
        assert array.chunks == ((6, 6, 4), (6, 6, 4))
        future = client.compute(array)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert relative(torch.from_numpy(future.result(timeout=120)), expected) < 1e-12
