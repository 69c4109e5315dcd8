"""Chapter 2: the infinite-width kernel. Claims ``eq-8``, ``eq-9``, ``ntk-limit``, ``ntk-constant``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.integrate import dblquad
from torch import Tensor, nn

from evidence.claims import Claim, Evidence
from evidence.routes import Measured, measure
from experiments.data import digits
from experiments.training import gradient_descent
from lorantk import LayerFactors, LoRA, infinite_width_ntk, mlp, ntk
from lorantk.grams import gram
from lorantk.models import ACTIVATIONS

from . import autograd, tolerance

NORMALISED = "after equation 2: the kernel converges, so sums over neurons are averages"
"""Where the poster says that its formulas carry a normalisation by the width."""


def closed_form(pair: Tensor, weight_variance: float) -> float:
    """Sigma^(2) of a pair by the package: the kernel of the last of two layers."""
    last = LoRA(1, variance=1.0, layers=["2"])
    return infinite_width_ntk(pair, depth=2, weight_variance=weight_variance, lora=last)[0, 1].item()


def by_integration(pair: Tensor, weight_variance: float) -> float:
    """The same for ReLU by adaptive integration with scipy, from v E[sigma(u) sigma(u')] alone."""
    k = weight_variance * pair @ pair.T / pair.shape[1]
    rho = (k[0, 1] / (k[0, 0] * k[1, 1]).sqrt()).item()

    def density(v: float, u: float) -> float:
        return u * v * math.exp(-(u * u - 2 * rho * u * v + v * v) / (2 * (1 - rho**2)))

    integral = dblquad(density, 0, 12, 0, 12, epsabs=1e-12, epsrel=1e-10)[0]
    scale = weight_variance * (k[0, 0] * k[1, 1]).sqrt().item()
    return scale * integral / (2 * math.pi * math.sqrt(1 - rho**2))


def neurons(pair: Tensor, widths: Sequence[int], weight_variance: float, seeds: Sequence[int]) -> pd.DataFrame:
    """Two forms of the sum over neurons, relative to `closed_form`, from layer factors of networks of growing width."""
    sigma, rows = closed_form(pair, weight_variance), []
    for width in widths:
        networks = (mlp([64, width, 1], "relu", weight_variance=weight_variance, seed=s).double() for s in seeds)
        factors = [LayerFactors.from_model(network, pair) for network in networks]
        averages = torch.stack(
            [gram(f, f, [("2", "weight")], "trace")[0, 1] / f.cotangents["2"][0, 0, 0, 0] ** 2 for f in factors]
        )
        rows.append(
            {"width": width, "average": averages.mean().item() / sigma,
             "se": averages.std().item() / len(seeds) ** 0.5 / sigma,
             "printed_sum": averages.mean().item() * width / weight_variance / sigma}
        )  # fmt: skip
    return pd.DataFrame(rows)


def plain_sums(networks: Sequence[nn.Sequential], pair: Tensor, weight_variance: float) -> Tensor:
    """sum_j sigma(y_j) sigma(y'_j) in each network, from its first two modules, over `by_integration`."""
    sums = [torch.dot(*network[:2](pair).detach()) for network in networks]
    return torch.stack(sums) / by_integration(pair, weight_variance)


def eq_9(seed: int, widths: Sequence[int], draws: int, weight_variance: float) -> Claim:
    """The two forms of Sigma for a pair of digits."""
    pair = digits(2, seed)[0]
    table = measure(neurons, pair, widths, weight_variance, range(seed, seed + draws))
    last, wide = table.value.iloc[-1], widths[-1]
    networks = [mlp([64, wide, 1], weight_variance=weight_variance, seed=seed + s).double() for s in range(draws)]
    plain = measure(plain_sums, networks, pair, weight_variance)
    # Student's law with draws - 1 degrees of freedom, not far from a Gaussian one
    reach = tolerance.student(draws - 1)
    error = (reach * plain.value.std() / draws**0.5 * weight_variance / wide).item()
    tip, grows = "sum over neurons / expectation, as printed", "the sum has as many terms as the layer has neurons"
    reason = "the expectation is another one, or v enters otherwise"
    miss = 2 * tolerance.MISS
    return Claim(
        "eq-9",
        [
            Evidence(tip, measure(lambda t: t.iloc[-1].printed_sum, table), 1 - reach * last.se, 1 + reach * last.se,
                     grows),
            Evidence("the same, plain sums / integral", measure(lambda p: p.mean().item(), plain), 1 - error, 1 + error,
                     grows),
            Evidence("v/n times the sum / expectation", measure(lambda t: t.iloc[-1].average, table),
                     1 - reach * last.se, 1 + reach * last.se, reason,
                     reading="as meant", source=NORMALISED, miss=miss),
            Evidence("v/n times the sum / expectation, plain", measure(
                lambda p: p.mean().item() * weight_variance / wide, plain), 1 - error, 1 + error, reason,
                reading="as meant", source=NORMALISED, miss=miss),
            Evidence("closed form / scipy, minus 1", measure(
                lambda a, b: a / b - 1, measure(closed_form, pair, weight_variance),
                measure(by_integration, pair, weight_variance)), -1e-8, 1e-8, reason, reading="as meant",
                source=NORMALISED),
        ],
        tip,
        figure="two-forms-of-sigma",
        tables={"forms": table.value},
    )  # fmt: skip


def wide_networks(x: Tensor, activation: str, depth: int, networks: Mapping[int, Sequence[nn.Sequential]],
                  weight_variance: float) -> pd.DataFrame:  # fmt: skip
    """Distance of the kernel to the recursion's limit and spread over initialisations, at growing width."""
    limit = infinite_width_ntk(x, depth=depth, activation=activation, weight_variance=weight_variance)
    rows = []
    for width, drawn in networks.items():
        nets = (nn.Sequential(*(m if isinstance(m, nn.Linear) else ACTIVATIONS[activation]() for m in net))
                for net in drawn)  # fmt: skip
        kernels = torch.stack([ntk(net, x, output="trace") for net in nets])
        gaps = (kernels - limit).flatten(1).norm(dim=1) / limit.norm()
        rows.append(
            {"activation": activation, "width": width, "gap": gaps.mean().item(),
             "gap_se": gaps.std().item() / len(drawn) ** 0.5,
             "spread": (kernels.var(0).sum().sqrt() / limit.norm()).item(),
             "gap_of_mean": ((kernels.mean(0) - limit).norm() / limit.norm()).item()}
        )  # fmt: skip
    return pd.DataFrame(rows)


def settles(x: Tensor, depth: int, widths: Sequence[int], weight_variance: float, seeds: Sequence[int]) -> pd.DataFrame:
    """`wide_networks` for three activations between the same weights."""
    networks = {w: [mlp([x.shape[1]] + [w] * (depth - 1) + [1], weight_variance=weight_variance, seed=s).double()
                    for s in seeds] for w in widths}  # fmt: skip
    return pd.concat([wide_networks(x, activation, depth, networks, weight_variance)
                      for activation in ("relu", "erf", "tanh")], ignore_index=True)  # fmt: skip


def rate(table: pd.DataFrame, column: str, activation: str) -> float:
    """Power of the width in a column."""
    part = table[table.activation == activation]
    return tolerance.power(part.width, part[column])


def random_architectures(cases: int, seed: int) -> list[tuple[Tensor, int, str, float]]:
    """Inputs, depth, activation and weight variance: two to four layers, repeated, reversed, collinear or no input."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    found = []
    for _ in range(cases):
        activation, layers = ("relu", "erf", "tanh", "linear")[pick(0, 3)], pick(2, 4)
        variance = 0.5 + 1.5 * torch.rand(1, generator=generator).item()
        points = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        points[-1] = (points[-1], points[0], -points[0], 2 * points[0], 0 * points[0])[pick(0, 4)]
        found.append((points, layers, activation, variance))
    return found


def worst_distance(cases: Sequence[tuple[Tensor, int, str, float]], seed: int) -> float:
    """Largest distance of the mean kernel of 16 networks of width 256 to the recursion, in standard errors."""
    found = []
    for case, (points, depth, activation, variance) in enumerate(cases):
        limit = infinite_width_ntk(points, depth=depth, activation=activation, weight_variance=variance)
        shape = [5] + [256] * (depth - 1) + [1]
        nets = (mlp(shape, activation, weight_variance=variance, seed=16 * (case + 1000 * seed) + s).double()
                for s in range(16))  # fmt: skip
        kernels = torch.stack([ntk(net, points, output="trace") for net in nets])
        found.append(((kernels.mean(0) - limit).norm() / (kernels.var(0).sum() / 16).sqrt()).item())
    return max(found)


def plain_limit(x: Tensor, v: float, x_norm: float) -> Tensor:
    """The recursion of equation 8 for ReLU and three layers, in numpy, with Sigma^(1) = v x.x' / x_norm.

    The Gaussian expectations are Cho and Saul's; `v` stands before each expectation.
    """
    sigma = v * (x @ x.T).numpy() / x_norm
    theta = sigma.copy()
    for _ in range(2):
        root = np.sqrt(np.outer(np.diag(sigma), np.diag(sigma)))
        angle = np.arccos(np.clip(sigma / root, -1, 1))
        derivative = v * (np.pi - angle) / (2 * np.pi)
        sigma = v * root * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
        theta = theta * derivative + sigma
    return torch.from_numpy(theta)


def plain_kernels(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Kernel matrices by plain gradients, (networks, n, n)."""
    return torch.stack([autograd.trace_kernel(network, x) for network in networks])


def relative_to_printed(networks: Sequence[nn.Module], x: Tensor) -> float:
    """Mean kernel over the literal recursion: x.x' and expectations without n_0 and v."""
    return (plain_kernels(networks, x).mean(0).norm() / plain_limit(x, 1.0, 1.0).norm()).item()


def relative_to_meant(networks: Sequence[nn.Module], x: Tensor, weight_variance: float) -> float:
    """Distance of the mean kernel to the normalised recursion in standard errors, all by hand."""
    kernels = plain_kernels(networks, x)
    limit = plain_limit(x, weight_variance, x.shape[1])
    return ((kernels.mean(0) - limit).norm() / (kernels.var(0).sum() / len(kernels)).sqrt()).item()


def package_to_printed(networks: Sequence[nn.Module], x: Tensor, weight_variance: float) -> float:
    """Mean kernel by the package over n_0 / v^3 times its recursion, which is the literal one at three layers."""
    mean = torch.stack([ntk(network, x, output="trace") for network in networks]).mean(0)
    literal = infinite_width_ntk(x, depth=3, weight_variance=weight_variance) * x.shape[1] / weight_variance**3
    return (mean.norm() / literal.norm()).item()


def eq_8(seed: int, table: Measured[pd.DataFrame], widths: Sequence[int], draws: int, weight_variance: float,
         cases: int) -> Claim:  # fmt: skip
    """The recursion: as printed, without a normalisation, and with it; `table` is of `settles`."""
    x, wide = digits(6, seed)[0], min(widths[-1], 512)
    networks = [mlp([64, wide, wide, 1], weight_variance=weight_variance, seed=seed + s).double() for s in range(draws)]
    reading = {"reading": "as meant", "source": NORMALISED}
    tip = "kernel of wide networks / the literal recursion, plain gradients"
    lacks = "n_0 and the weight variance are missing"
    near, wrong = tolerance.student(draws - 1) + 1, "the recursion, or its normalisation, is another one"
    last = table.value[table.value.width == widths[-1]].set_index("activation")
    return Claim(
        "eq-8",
        [
            Evidence(tip, measure(relative_to_printed, networks, x), 0.9, 1.1, lacks),
            Evidence("the same by the package", measure(package_to_printed, networks, x, weight_variance), 0.9, 1.1,
                     lacks),
            Evidence("with x·x'/n_0 and v: distance of the mean in standard errors, by hand", measure(
                relative_to_meant, networks, x, weight_variance), 0, near, wrong, miss=1e-4, **reading),
            *(Evidence(f"distance of the mean kernel to the recursion in standard errors, {a}", measure(
                _in_errors, table, a, draws), 0, near, wrong, miss=1e-4, **reading) for a in last.index),
            Evidence("random architectures: largest distance in standard errors", measure(
                worst_distance, random_architectures(cases, seed), seed), 0, tolerance.student(15, 1e-3 / cases) + 1,
                "some depth, activation or input breaks it", miss=1e-3, **reading),
        ],
        tip,
        figure="kernel-limit",
    )  # fmt: skip


def _in_errors(table: pd.DataFrame, activation: str, draws: int) -> float:
    """Distance of the mean of the widest networks to the recursion, in standard errors."""
    row = table[table.activation == activation].iloc[-1]
    return row.gap_of_mean / (row.spread / draws**0.5)


def plain_spread(networks: Mapping[int, Sequence[nn.Module]], x: Tensor) -> float:
    """Power of the width in the relative spread of the kernel over initialisations, by plain gradients."""
    spreads = []
    for nets in networks.values():
        kernels = plain_kernels(nets, x)
        spreads.append((kernels.var(0).sum().sqrt() / kernels.mean(0).norm()).item())
    return tolerance.power(list(networks), spreads)


def ntk_limit(seed: int, table: Measured[pd.DataFrame], widths: Sequence[int], draws: int,
              weight_variance: float) -> Claim:  # fmt: skip
    """Spread over initialisations and distance to the limit fall as 1/sqrt(n); `table` is of `settles`."""
    x = digits(4, seed)[0]
    ends = [widths[0], min(widths[-1], 1024)]
    networks = {w: [mlp([64, w, w, 1], weight_variance=weight_variance, seed=seed + s).double() for s in range(draws)]
                for w in ends}  # fmt: skip
    reason = "the kernel keeps the randomness of its weights"
    # a spread over correlated entries has the relative error of one standard deviation; 0.1 for the O(1/n) term
    slack = tolerance.slope(widths, 1 / (2 * draws) ** 0.5, 1e-3) + 0.1
    plain_slack = tolerance.slope(ends, 1 / (2 * draws) ** 0.5, 1e-3) + 0.1
    return Claim(
        "ntk-limit",
        [Evidence(f"rate of the {column}, {a}", measure(rate, table, key, a), -0.5 - slack, -0.5 + slack,
                  reason, miss=1e-3)
         for key, column in (("spread", "spread"), ("gap", "distance"))
         for a in ("relu", "erf", "tanh")]
        + [Evidence("rate of the spread, plain gradients", measure(plain_spread, networks, x),
                    -0.5 - plain_slack, -0.5 + plain_slack, reason, miss=1e-3)],
        "rate of the spread, relu",
        figure="kernel-limit",
    )  # fmt: skip


Pair = tuple[nn.Module, nn.Module]


def trained(images: Tensor, labels: Tensor, depth: int, widths: Sequence[int], weight_variance: float,
            learning_rate: float, steps: int, seeds: Sequence[int]) -> dict[tuple[int, int], Pair]:  # fmt: skip
    """Networks before and after gradient descent, by width and seed."""
    pairs: dict[tuple[int, int], Pair] = {}
    for width in widths:
        for s in seeds:
            shape = [64] + [width] * (depth - 1) + [10]
            network = mlp(shape, "relu", weight_variance=weight_variance, seed=s).double()
            after = gradient_descent(network, images, labels, learning_rate=learning_rate, steps=steps)
            pairs[width, s] = network, after
    return pairs


def drifts(pairs: Mapping[tuple[int, int], Pair], images: Tensor) -> pd.Series:
    """Relative change of the kernel, by width and seed."""
    found = {}
    for key, (network, after) in pairs.items():
        start = ntk(network, images, output="trace")
        found[key] = ((ntk(after, images, output="trace") - start).norm() / start.norm()).item()
    return pd.Series(found)


def plain_drifts(pairs: Mapping[tuple[int, int], Pair], images: Tensor) -> pd.Series:
    """The same by plain gradients."""
    kernels = {key: [autograd.trace_kernel(m, images) for m in pair] for key, pair in pairs.items()}
    return pd.Series(
        {key: ((after - before).norm() / before.norm()).item() for key, (before, after) in kernels.items()}
    )


def moves(pairs: Mapping[tuple[int, int], Pair]) -> pd.Series:
    """Distance that all weights together move, by width and seed."""
    vectors = {key: [nn.utils.parameters_to_vector(m.parameters()) for m in pair] for key, pair in pairs.items()}
    return pd.Series({key: (after - before).norm().item() for key, (before, after) in vectors.items()})


def accuracies(pairs: Mapping[tuple[int, int], Pair], images: Tensor, labels: Tensor) -> pd.Series:
    """Share of training images right after training, by width and seed."""
    return pd.Series({key: (after(images).argmax(1) == labels).double().mean().item()
                      for key, (_, after) in pairs.items()})  # fmt: skip


def power(values: pd.Series) -> float:
    """Power of the width in values by width and seed."""
    return tolerance.power(values.index.get_level_values(0), values)


def ntk_constant(seed: int, n: int, depth: int, widths: Sequence[int], weight_variance: float, learning_rate: float,
                 steps: int, runs: int) -> Claim:  # fmt: skip
    """The kernel of full fine-tuning before and after training, at growing width."""
    images, labels = digits(2 * n, seed)
    pairs = trained(images, labels, depth, widths, weight_variance, learning_rate, steps, range(seed, seed + runs))
    ends = {key: pair for key, pair in pairs.items() if key[0] in (widths[0], widths[-1]) and key[1] < seed + 3}
    by_kernel, by_weights = measure(drifts, pairs, images), measure(moves, pairs)
    learned = measure(accuracies, pairs, images, labels)
    table = pd.DataFrame({"drift": by_kernel.value, "distance": by_weights.value, "accuracy": learned.value})
    norms = {
        key: nn.utils.parameters_to_vector(before.parameters()).norm().item() for key, (before, _) in pairs.items()
    }
    table["weight_move"] = table.distance / pd.Series(norms)
    table = table.rename_axis(["width", "seed"]).reset_index()
    stays = "the kernel moves as far in a wide network"
    return Claim(
        "ntk-constant",
        [
            Evidence("rate of the kernel drift", measure(power, by_kernel), -1.1, -0.4, stays,
                     miss=1e-3),
            Evidence("the same by plain gradients, four images, two widths", measure(
                power, measure(plain_drifts, ends, images[:4])), -1.3, -0.2, stays, miss=1e-3),
            Evidence("power of the width in the distance that all weights move", measure(power, by_weights), -0.1, 0.1,
                     "weights move as their number grows", miss=1e-3),
            Evidence("accuracy reached in the slowest run", measure(lambda a: a.min(), learned), 0.8, 1,
                     "nothing was learned, and nothing had to move", miss=1e-3),
        ],
        "rate of the kernel drift",
        figure="kernel-drift",
        tables={"training": table[["width", "seed", "drift", "distance", "weight_move", "accuracy"]]},
    )  # fmt: skip


def claims(seed: int, depth: int, weight_variance: float, widths: Sequence[int], draws: int, n: int,
           cases: int) -> tuple[Claim, Claim, pd.DataFrame]:  # fmt: skip
    """``eq-8``, ``ntk-limit`` and the table of distances they share."""
    x = digits(n, seed)[0]
    table = measure(settles, x, depth, widths, weight_variance, range(seed, seed + draws))
    one = eq_8(seed, table, widths, draws, weight_variance, cases)
    return one, ntk_limit(seed, table, widths, draws, weight_variance), table.value
