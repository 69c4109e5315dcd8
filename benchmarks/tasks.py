"""What lorantk and plain PyTorch are timed at. Each function prepares, and returns what is timed.

Inputs and weights come from NumPy generators, so that a peer in another environment gets the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, stack_module_state, vmap
from torch.nn import functional as F

from experiments.stacked import Stacked
from lorantk import LoRA, TangentKernel, fisher_spectrum, infinite_width_ntk, lora_ntk_sweep, mlp, ntk
from lorantk.factors import ROWS, LayerFactors
from lorantk.fisher import loss_gram
from lorantk.grams import gram

VERSIONS = ("lorantk", "torch", "numpy")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Run = Callable[[], Tensor]


def finish() -> None:
    """Wait for the card: its work goes on after a call has returned."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def card_peak(reset: bool = False) -> int | None:
    """Peak of bytes on the card since it was reset; None without one."""
    if DEVICE != "cuda":
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def inputs(n: int, d: int, dtype: str = "float32") -> Tensor:
    """Gaussian inputs (n, d)."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((n, d)).astype(dtype)).to(DEVICE)


def labels(n: int, classes: int) -> Tensor:
    """Random labels (n,)."""
    return torch.from_numpy(np.random.default_rng(1).integers(classes, size=n)).to(DEVICE)


def network(widths: Sequence[int], parametrization: str = "ntk") -> nn.Sequential:
    """A ReLU network whose weights are those of the peers' networks."""
    model, generator = mlp(widths, parametrization=parametrization), np.random.default_rng(2)
    for layer in (module for module in model if isinstance(module, nn.Linear)):
        weight = torch.from_numpy(generator.standard_normal(tuple(layer.weight.shape)).astype("float32"))
        layer.weight.data = weight if parametrization == "ntk" else weight * (2 / layer.in_features) ** 0.5
    return model.to(DEVICE)


def per_input_jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Jacobians (n, C, ...) by the trainable parameters, as torch.func's documentation takes them."""
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rows = vmap(lambda row: jacrev(lambda v: functional_call(model, v, (row[None],))[0])(values))(x)
    return {name: j.detach().flatten(2) for name, j in rows.items()}


def contracted(jacobians: dict[str, Tensor]) -> Tensor:
    """Sum over parameters of J J^T, (n, C, n, C)."""
    return sum(torch.einsum("ncp,mdp->ncmd", j, j) for j in jacobians.values())  # type: ignore[return-value]


def kernel(widths: Sequence[int], n: int, output: str = "full", **options: Any) -> Run:
    """The full kernel by lorantk."""
    model, x = network(widths), inputs(n, widths[0])
    return lambda: ntk(model, x, output=output, method="layerwise", **options)


def kernel_of_adapters(widths: Sequence[int], n: int, rank: int) -> Run:
    """The kernel of adapters at their start, summed over outputs, by lorantk."""
    model, x = network(widths), inputs(n, widths[0])
    return lambda: ntk(LoRA(rank).attach(model), x, output="trace", method="layerwise")


def jacobian_kernel(widths: Sequence[int], n: int) -> Run:
    """The full kernel by torch.func."""
    model, x = network(widths), inputs(n, widths[0])
    return lambda: contracted(per_input_jacobians(model, x))


def sweep(widths: Sequence[int], n: int, ranks: Sequence[int], variances: Sequence[float], seeds: int) -> Run:
    """Kernels of ranks x variances x seeds adapter draws by lorantk; the last one is the result that is compared."""
    model, x = network(widths), inputs(n, widths[0])
    loras = [LoRA(rank, variance) for rank in ranks for variance in variances]
    return lambda: lora_ntk_sweep(model, x, loras=loras, seeds=range(seeds))[-1, -1]


def one_adapted_kernel(widths: Sequence[int], n: int, rank: int, variance: float, seed: int) -> Run:
    """One kernel of that sweep from the Jacobians of the network with its adapters in place."""
    x, lora = inputs(n, widths[0]), LoRA(rank, variance)
    model = network(widths)
    return lambda: contracted(per_input_jacobians(lora.attach(model, seed), x))


def product(n: int, k: int) -> Run:
    """A matrix product (n, k) by (k, n): what this machine's BLAS does at best."""
    a = inputs(n, k)
    out = a.new_empty(n, n)
    return lambda: torch.mm(a, a.T, out=out)[:1]


def bare_products(widths: Sequence[int], n: int, outputs: int) -> Run:
    """The matrix products of one forward pass and of a backward pass an output, at their shapes and nothing else."""
    weights = [inputs(fan_out, fan_in) for fan_in, fan_out in itertools.pairwise(widths)]
    forward = [(inputs(n, w.shape[1]), w.T, w.new_empty(n, w.shape[0])) for w in weights]
    back = [(inputs(n * outputs, w.shape[0]), w, w.new_empty(n * outputs, w.shape[1])) for w in weights[1:]]

    def run() -> Tensor:
        for a, b, out in [*forward, *back]:
            torch.mm(a, b, out=out)
        return out[:1]

    return run


def bare_passes(widths: Sequence[int], n: int, outputs: int) -> Run:
    """One forward pass and a backward pass an output by PyTorch, to the layers' outputs and no further."""
    model, x = network(widths).requires_grad_(False), inputs(n, widths[0])
    step = max(1, min(outputs, ROWS // n))  # outputs that go through one pass, as in the kernel

    def run() -> Tensor:
        places: list[Tensor] = []
        h = x
        for layer in model:
            h = layer(h)
            if isinstance(layer, nn.Linear):
                places.append(h if places else h.requires_grad_())
        for start in range(0, outputs, step):
            basis = h.new_zeros(min(step, outputs - start), n, outputs)
            basis.diagonal(start, 0, 2).fill_(1.0)
            gradients = torch.autograd.grad(h, places, basis, retain_graph=True, is_grads_batched=True)
        return gradients[0][0, :1]

    return run


def bare_grams(widths: Sequence[int], n: int, outputs: int) -> Run:
    """The Gram matrices of activations and of hidden layers' cotangents as full products, and nothing else."""
    activations = [inputs(n, width) for width in widths[:-1]]
    cotangents = [inputs(n * outputs, width) for width in widths[1:-1]]
    small, large = activations[0].new_empty(n, n), activations[0].new_empty(n * outputs, n * outputs)

    def run() -> Tensor:
        for a in activations:
            torch.mm(a, a.T, out=small)
        for g in cotangents:
            torch.mm(g, g.T, out=large)
        return large[:1]

    return run


def gram_products(widths: Sequence[int], n: int) -> Run:
    """The contraction alone: layer factors to kernel."""
    factors = LayerFactors.from_model(network(widths), inputs(n, widths[0]))
    uses = [(name, "weight") for name in factors.activations]
    return lambda: gram(factors, factors, uses, "full")


def fisher(widths: Sequence[int], n: int, top: int) -> Run:
    """Largest eigenvalues of the empirical Fisher; all the nonzero ones are computed."""
    model, x, y = network(widths, "standard"), inputs(n, widths[0]), labels(n, widths[-1])
    return lambda: fisher_spectrum(model, x, y)[:top]


def network_gram(widths: Sequence[int], n: int) -> Run:
    """Inner products of loss gradients of all weights of a network by lorantk."""
    model, x, y = network(widths, "standard"), inputs(n, widths[0]), labels(n, widths[-1])
    return lambda: loss_gram(model, x, y)


def limit(n: int, d: int, depth: int) -> Run:
    """The infinite-width kernel in float64."""
    x = inputs(n, d, "float64")
    return lambda: infinite_width_ntk(x, depth=depth)


def limit_diagonal(n: int, d: int, depth: int) -> Run:
    """The diagonal of `limit`."""
    kernel = limit(n, d, depth)
    return lambda: kernel().diagonal()


def limit_off_diagonal(n: int, d: int, depth: int) -> Run:
    """The entries of `limit` off its diagonal."""
    kernel = limit(n, d, depth)
    return lambda: kernel().fill_diagonal_(0)


def limit_diagonal_in_closed_form(n: int, d: int, depth: int) -> Run:
    """At weight variance 2 every ReLU layer keeps the norm: depth 2 |x|^2 / d."""
    x = inputs(n, d, "float64")
    return lambda: depth * 2 * x.square().sum(1) / d


def bert(layers: int, width: int, vocabulary: int, tokens: int) -> nn.Module:
    """A random BERT classifier of two classes in eval mode."""
    from transformers import AutoModelForSequenceClassification, BertConfig

    torch.manual_seed(0)  # transformers draws from the global state; this process serves benchmarks only
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64 or 1,
        intermediate_size=4 * width, max_position_embeddings=tokens,
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval().to(DEVICE)


def text(n: int, tokens: int, vocabulary: int) -> Tensor:
    """Random tokens (n, tokens)."""
    return torch.from_numpy(np.random.default_rng(3).integers(vocabulary, size=(n, tokens))).to(DEVICE)


def bert_gram(n: int, tokens: int, layers: int, width: int, vocabulary: int) -> Run:
    """Inner products of loss gradients of all weights of a BERT by lorantk."""
    model, x, y = bert(layers, width, vocabulary, tokens), text(n, tokens, vocabulary), labels(n, 2)
    return lambda: loss_gram(model, {"input_ids": x}, y)


def loss(model: nn.Module, values: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
    """Loss of one input of a network or a BERT at given weights."""
    if isinstance(model, nn.Sequential):
        outputs = functional_call(model, values, (row[None],))
    else:
        outputs = functional_call(model, values, (), {"input_ids": row[None]}).logits
    return F.cross_entropy(outputs, label[None])


def _loss_gradient(model: nn.Module) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    values = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return lambda row, label: grad(partial(loss, model))(values, row, label)


def bert_gradients(n: int, tokens: int, layers: int, width: int, vocabulary: int) -> Run:
    """The same from the gradients themselves, by vmap(grad)."""
    model, x, y = bert(layers, width, vocabulary, tokens), text(n, tokens, vocabulary), labels(n, 2)
    gradient = _loss_gradient(model)
    return lambda: sum(g.flatten(1) @ g.flatten(1).T for g in vmap(gradient)(x, y).values())  # type: ignore[return-value]


def bert_projected(n: int, tokens: int, layers: int, width: int, vocabulary: int, dimension: int) -> Run:
    """The same, estimated from gradients projected to `dimension` random signs a parameter, as TRAK projects them."""
    model, x, y = bert(layers, width, vocabulary, tokens), text(n, tokens, vocabulary), labels(n, 2)
    gradient, rows = _loss_gradient(model), 2**14

    def run() -> Tensor:
        projected = torch.zeros(n, dimension, device=DEVICE)
        for index, g in enumerate(vmap(gradient)(x, y).values()):
            generator = torch.Generator().manual_seed(index)
            for part in g.flatten(1).split(rows, dim=1):  # the signs are never all in memory, as in TRAK
                signs = torch.randint(2, (part.shape[1], dimension), generator=generator, dtype=torch.int8)
                projected += part @ signs.to(DEVICE).float().mul_(2).sub_(1)
        return projected @ projected.T / dimension

    return run


def bert_adapters(n: int, tokens: int, layers: int, width: int, vocabulary: int, rank: int, max_memory: str) -> Run:
    """The kernel of adapters on query and value."""
    model, x = bert(layers, width, vocabulary, tokens), text(n, tokens, vocabulary)
    lora = LoRA(rank, layers=["query", "value"])
    return lambda: ntk(lora.attach(model), {"input_ids": x}, max_memory=max_memory)


def gpt2_adapters(n: int, tokens: int, layers: int, width: int, vocabulary: int, rank: int, max_memory: str) -> Run:
    """The kernel of adapters on attention's products in a random GPT-2, for the logits of two next tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=width // 64 or 1, n_positions=tokens,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LoRA(rank, layers=["c_attn"]).attach(GPT2LMHeadModel(config).eval()).to(DEVICE)
    x = {"input_ids": text(n, tokens, vocabulary)}
    return lambda: ntk(model, x, select=lambda outputs: outputs.logits[:, -1, :2], max_memory=max_memory)


def leading_eigenvalues(widths: Sequence[int], n: int, k: int) -> Run:
    """Largest eigenvalues of the kernel of n inputs and all outputs, without the kernel."""
    model, x = network(widths), inputs(n, widths[0])
    return lambda: TangentKernel(model, x).eigenvalues(k)


def _training_set(width: int, networks: int, n: int) -> tuple[list[nn.Sequential], Tensor, Tensor]:
    models = [mlp([64, width, width, 5], parametrization="standard", seed=seed).to(DEVICE) for seed in range(networks)]
    return models, inputs(n, 64), labels(n, 5)


def _steps(n: int, steps: int, batch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(4).integers(n, size=(steps, batch)))


def train_stacked(width: int, networks: int, n: int, steps: int, batch: int) -> Run:
    """Train networks by SGD as the runs on digits do: parameters stacked, products batched."""
    models, x, y = _training_set(width, networks, n)

    def run() -> Tensor:
        stacked = Stacked(models, "full")
        for rows in _steps(n, steps, batch):
            outputs = stacked(x[rows].expand(networks, -1, -1))
            loss = F.cross_entropy(outputs.flatten(0, 1), y[rows].repeat(networks)) * networks
            gradients = torch.autograd.grad(loss, stacked.parameters)
            with torch.no_grad():
                torch._foreach_add_(stacked.parameters, gradients, alpha=-0.1)
        return stacked.weights["4"].detach()

    return run


def train_in_a_loop(width: int, networks: int, n: int, steps: int, batch: int) -> Run:
    """Train the same networks one after another."""
    models, x, y = _training_set(width, networks, n)

    def run() -> Tensor:
        heads = []
        for model in models:
            weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
            for rows in _steps(n, steps, batch):
                loss = F.cross_entropy(functional_call(model, weights, (x[rows],)), y[rows])
                gradients = torch.autograd.grad(loss, list(weights.values()))
                with torch.no_grad():
                    torch._foreach_add_(list(weights.values()), gradients, alpha=-0.1)
            heads.append(weights["4.weight"].detach())
        return torch.stack(heads)

    return run


def train_by_vmap(width: int, networks: int, n: int, steps: int, batch: int) -> Run:
    """Train the same networks with torch.func.stack_module_state and vmap."""
    models, x, y = _training_set(width, networks, n)

    def loss(values: dict[str, Tensor], rows: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(models[0], values, (rows,)), labels)

    def run() -> Tensor:
        values = {name: p.detach() for name, p in stack_module_state(models)[0].items()}
        for rows in _steps(n, steps, batch):
            gradients = vmap(grad(loss), (0, None, None))(values, x[rows], y[rows])
            values = {name: p - 0.1 * gradients[name] for name, p in values.items()}
        return values["4.weight"]

    return run
