"""What libraries for data attribution are timed at: inner products of loss gradients, on models of tasks.py."""

import sys

import torch
from dattri.algorithm.tracin import TracInAttributor
from dattri.task import AttributionTask
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from trak.gradient_computers import FunctionalGradientComputer
from trak.modelout_functions import AbstractModelOutput
from trak.projectors import NoOpProjector
from trak.utils import get_num_params

from benchmarks.tasks import DEVICE, bert, inputs, labels, loss, network, text

VERSIONS = ("dattri", "traker", "bergson", "torch")
# bergson asks for these, whose wheels do not load beside torch for the CPU; transformers takes them for missing
sys.modules |= {"torchvision": None, "torchaudio": None}


def problem(n, widths=None, **sizes):
    """Network or BERT, its inputs and labels."""
    if widths:
        return network(widths, "standard"), inputs(n, widths[0]), labels(n, widths[-1])
    return bert(**sizes), text(n, sizes["tokens"], sizes["vocabulary"]), labels(n, 2)


def tracin(**sizes):
    """Grad-Dot by dattri: TracIn at one checkpoint, between the set and itself, with all of each gradient."""
    model, x, y = problem(**sizes)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(y))

    def run():
        task = AttributionTask(lambda values, batch: loss(model, values, *batch), model, model.state_dict())
        whole = {"proj_type": "identity"}  # without it gradients are projected to 512 dimensions
        attributor = TracInAttributor(task, torch.ones(1), False, projector_kwargs=whole, device=DEVICE)
        return attributor.attribute(loader, loader)

    return run


class Loss(AbstractModelOutput):
    """The loss as the output that TRAK takes gradients of."""

    def __init__(self):
        pass

    @staticmethod
    def get_output(model, weights, buffers, row, label):
        """Loss of one input."""
        return loss(model, (weights, buffers), row, label)

    def get_out_to_loss_grad(self, model, weights, buffers, batch):
        """The output is the loss."""
        return torch.ones(len(batch[0]), 1)


def trak_features(**sizes):
    """Gram matrix of TRAK's gradient features, without its projection."""
    model, x, y = problem(**sizes)

    def run():
        computer = FunctionalGradientComputer(model, Loss(), get_num_params(model), torch.float32, DEVICE)
        features = NoOpProjector(device=DEVICE).project(computer.compute_per_sample_grad((x, y)), model_id=0)
        return features @ features.T

    return run


def collected(**sizes):
    """Gram matrix of the gradients that bergson collects in memory, of linear layers and without its projection."""
    from bergson import IndexConfig, InMemoryCollector
    from datasets import Dataset

    model, x, y = problem(**sizes)
    model.device = torch.device(DEVICE)  # as models of transformers have
    data = Dataset.from_dict({"index": list(range(len(y)))})

    def run():
        collector = InMemoryCollector(model=model, data=data, cfg=IndexConfig(run_path=""))
        with collector:
            losses = F.cross_entropy(model(x[:, None])[:, 0], y, reduction="none")  # texts of one token
            losses.sum().backward()
        model.zero_grad()
        collector.process_batch(data["index"][:], losses=losses)
        collector.teardown()
        return sum(g @ g.T for g in collector.gradients.values())

    return run
