"""Many networks of one shape as one: their parameters are stacked along the first axis and trained together.

Parameters of R networks are (R, fan_out, fan_in), and every product is one batched matrix product. Networks are
multilayer perceptrons without biases whose linear layers are named "0", "2", "4", ...; the last one, the head, is
always trained; `method` says what else is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lorantk import Adapter, attach
from lorantk.batches import check_choice, check_integer
from lorantk.models import NTKLinear


class Stacked:
    """R networks that train together.

    Parameters
    ----------
    networks : sequence of nn.Sequential
        R networks of one shape; left as they are.
    method : {"full", "lora", "head", "matched"}
        What is trained beside the head: all weights; adapters, from B = 0; nothing; or all weights of
        y = c W' a with W' = W / c, whose kernel is c^2 times that of W.
    adapters : sequence of mappings of layer name to `lorantk.lora.Adapter`
        For "lora": R of them, of one rank in each layer.
    prefactors : sequence of mappings of layer name to float
        For "matched": c of each layer but the head, R of them.
    """

    def __init__(
        self,
        networks: Sequence[nn.Sequential],
        method: str,
        adapters: Sequence[Mapping[str, Adapter]] = (),
        prefactors: Sequence[Mapping[str, float]] = (),
    ) -> None:
        check_choice("method", method, ("full", "lora", "head", "matched"))
        check_integer("number of networks", len(networks), 1)
        self.networks, self.method = networks, method
        names = [str(i) for i in range(0, len(networks[0]), 2)]
        self.head, hidden = names[-1], names[:-1]
        self.weights = {n: torch.stack([net.get_parameter(f"{n}.weight").detach() for net in networks]) for n in names}
        self.prefactors = {n: _per_network([c[n] for c in prefactors]) for n in hidden if prefactors}
        for name, c in self.prefactors.items():
            self.weights[name] /= c
        self.adapters = {name: self._stack([a[name] for a in adapters], name) for name in (adapters or [{}])[0]}
        trained = names if method in ("full", "matched") else [self.head]
        self.parameters = [self.weights[n] for n in trained] + [t for A, B, _ in self.adapters.values() for t in (A, B)]
        for parameter in self.parameters:
            parameter.requires_grad_()

    def _stack(self, adapters: Sequence[Adapter], name: str) -> tuple[Tensor, Tensor, Tensor]:
        """A, B = 0 and s of the adapters of one layer."""
        A = torch.stack([adapter.A for adapter in adapters])
        B = torch.zeros(len(adapters), self.weights[name].shape[1], A.shape[1])
        return A, B, _per_network([adapter.scaling for adapter in adapters])

    # Shapes of a layer of fan-in k and fan-out m, for R networks, n inputs and rank r:
    #   a (R, n, k)   W (R, m, k)   A (R, r, k)   B (R, m, r)   c, s (R, 1, 1)   y (R, n, m)
    # Arithmetic: y = c a W^T + s (a A^T) B^T, and a' = max(y, 0) but for the head.

    def __call__(self, a: Tensor) -> Tensor:
        """Outputs (R, n, C) at inputs (R, n, d)."""
        for name in self.weights:
            y = self._add_adapter(name, a, self._apply_weight(name, a))
            a = y if name == self.head else y.relu()
        return a

    def _apply_weight(self, name: str, a: Tensor) -> Tensor:
        """c a W^T."""
        return torch.bmm(self.prefactors.get(name, 1.0) * a, self.weights[name].mT)

    def _add_adapter(self, name: str, a: Tensor, y: Tensor) -> Tensor:
        """y + s (a A^T) B^T; y itself where the layer has no adapter."""
        if name not in self.adapters:
            return y
        A, B, s = self.adapters[name]
        return torch.baddbmm(y, s * torch.bmm(a, A.mT), B.mT)

    def network(self, i: int) -> nn.Module:
        """Network i as a module of its own, with what is trained as its trainable parameters."""
        network: nn.Module = copy.deepcopy(self.networks[i]).requires_grad_(self.method in ("full", "matched"))
        for name, c in self.prefactors.items():
            fan_out, fan_in = self.weights[name].shape[1:]
            scaled = NTKLinear(fan_in, fan_out, c[i].item() ** 2 * fan_in, bias=False)
            network.set_submodule(name, scaled)
        for name, weight in self.weights.items():
            network.get_submodule(name).weight.data = weight[i].detach().clone()
        if self.adapters:
            network = attach(network, {
                name: Adapter(A[i].detach(), B[i].detach(), s[i].item()) for name, (A, B, s) in self.adapters.items()
            })  # fmt: skip
        network.get_submodule(self.head).requires_grad_(True)
        return network


def _per_network(values: Sequence[float]) -> Tensor:
    """One number a network, shaped (R, 1, 1) to multiply its activations or weights."""
    return torch.tensor(values)[:, None, None]
