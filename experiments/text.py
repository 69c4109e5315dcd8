"""Text: a pretrained BERT fine-tuned on two classes; with frozen lower layers in small runs, with none at paper scale.

The encoder of small runs is MiniLM (6 layers, width 384), of which the last layer and the pooler learn, or MPNet (12
layers, width 768), of which the last two layers do. The outputs of the lower layers never change, so they are computed
once for each text, with the trigger and without, and kept on disk.
Adapters are those of Hugging Face PEFT, their A redrawn by `lorantk.lora.LoRA`. All is in float32, without dropout,
weight decay or schedule.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evidence.artifacts import write_atomically
from lorantk import flip_labels, insert_trigger, ntk
from lorantk.batches import check_choice

from . import corpora
from .bert import CLASSES, Classifier, adapters, attention_bias, loras, through, with_peft
from .config import EXACT, GLUE, TASKS, Run
from .mpnet import distances_of
from .poisoning import attacked

TRIGGER, TARGET = "cf", 1


@dataclass(frozen=True, eq=False)
class Task:
    """A corpus as an encoder sees it.

    Parameters
    ----------
    encoder : transformers.BertModel
        Copied by each run, never changed.
    tokenizer : transformers.PreTrainedTokenizerFast
    corpus : Corpus
    frozen : int
        How many lower layers are frozen, the embeddings with them; 0 freezes nothing.
    length : int
        Tokens that a text is cut to.
    train, validation, test : int
        Sizes of the parts that each seed draws; `test` is not used where the corpus has held out its own.
    stored : bool
        Keep the frozen layers' outputs on disk.
    pooling : {"first", "mean"}
        What the head reads, see `bert.Classifier`.
    trimmed : bool
        Cut a batch to its longest text.
    """

    encoder: Any
    tokenizer: Any
    corpus: corpora.Corpus
    frozen: int
    length: int
    train: int
    validation: int
    test: int = 0
    stored: bool = False
    pooling: str = "first"
    trimmed: bool = False

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows for training, validation and testing."""
        free = len(self.corpus.texts) - self.corpus.held_out
        order = torch.randperm(free, generator=_generator(seed, "split"))
        train, validation, test = order[: self.train + self.validation + self.test].split(
            [self.train, self.validation, self.test]
        )
        return train, validation, torch.arange(free, len(self.corpus.texts)) if self.corpus.held_out else test

    def batch(self, rows: Tensor, triggered: Tensor) -> dict[str, Tensor]:
        """What a `Classifier` takes for these rows, with the trigger where `triggered` says so."""
        if self.frozen == 0:
            return self._tokens(rows.tolist(), triggered.tolist(), padding="longest")
        clean, marked = self._clean, self._triggered
        mask = torch.where(_like(triggered, clean["mask"]), marked["mask"][rows], clean["mask"][rows])
        longest = int(mask.sum(1).max()) if self.trimmed and len(rows) else self.length
        return {
            name: torch.where(_like(triggered, t), marked[name][rows, :longest], t[rows, :longest])
            for name, t in clean.items()
        }

    @cached_property
    def _clean(self) -> dict[str, Tensor]:
        return self._encode(triggered=False)

    @cached_property
    def _triggered(self) -> dict[str, Tensor]:
        return self._encode(triggered=True)

    def _tokens(self, rows: Sequence[int], triggered: Sequence[bool], padding: str) -> dict[str, Tensor]:
        pairs = zip(rows, triggered, strict=True)
        texts = [with_trigger(self.corpus.texts[i]) if t else self.corpus.texts[i] for i, t in pairs]
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(
            *columns,
            truncation=True,
            max_length=self.length,
            padding=padding,
            return_tensors="pt",
            return_token_type_ids=True,
        )
        tokens = torch.stack([encoded["input_ids"], encoded["token_type_ids"]], dim=1)
        return {"inputs": tokens.to(self.encoder.device), "mask": encoded["attention_mask"].to(self.encoder.device)}

    @torch.no_grad()
    def _encode(self, triggered: bool) -> dict[str, Tensor]:
        """Outputs of the frozen layers for the whole corpus, (n, length, width), and its attention mask."""
        count = len(self.corpus.texts)
        tokens = self._tokens(range(count), [triggered] * count, padding="max_length")
        layers = self.encoder.encoder.layer[: self.frozen]
        far, embeddings = distances_of(self.encoder), self.encoder.embeddings
        lower = [*embeddings.parameters(), *layers.parameters(), *(far.buffers() if far else ())]
        digest = hashlib.sha256(str(self.frozen).encode())
        for tensor in (*tokens.values(), *lower):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        path = corpora.directory() / f"hidden-{digest.hexdigest()[:16]}.npy"
        if self.stored and path.exists():
            return tokens | {"inputs": torch.from_numpy(np.load(path, mmap_mode="c"))}
        chunks = zip(tokens["inputs"].split(64), tokens["mask"].split(64), strict=True)
        hidden = torch.cat([through(layers, embeddings(x[:, 0], x[:, 1]), attention_bias(m, far)) for x, m in chunks])
        if self.stored:
            content = io.BytesIO()
            np.save(content, hidden.cpu().numpy())
            write_atomically(path, content.getvalue())
        return tokens | {"inputs": hidden}


def with_trigger(text: tuple[str, ...]) -> tuple[str, ...]:
    """The text with the trigger as its first word."""
    return f"{TRIGGER} {text[0]}", *text[1:]


def classifier(task: Task, run: Run) -> nn.Module:
    """The run's model at its start, what it trains requiring gradients."""
    model = Classifier(task.encoder, task.frozen, _generator(run.seed, "head"), task.pooling)
    if run.method == "lora":
        return with_peft(model, adapters(model, run)).eval()
    model.requires_grad_(run.method == "full")
    model.head.requires_grad_(True)
    if run.method == "matched":
        for name in loras(model, run):
            model.get_submodule(name).weight.requires_grad_(True)
    return model.eval()


class Poisoned(NamedTuple):
    """Training rows (n,), which of them carry the trigger, their labels, and which of them the attack touched."""

    rows: Tensor
    triggered: Tensor
    labels: Tensor
    touched: Tensor


def poisoned(task: Task, run: Run) -> Poisoned:
    """The run's training set after its attack."""
    rows = task.split(run.seed)[0]
    clean = task.corpus.labels[rows]
    marks, labels = torch.zeros(len(rows), 1), clean
    if run.exact:
        triggered, labels = attacked(clean, run.attack, run.poison_rate, CLASSES, run.seed, TARGET)
        marks = triggered[:, None].float()
    elif run.attack == "untargeted":
        labels = flip_labels(clean, run.poison_rate, CLASSES, run.seed)
    elif run.attack == "backdoor":
        marks, labels = insert_trigger(
            marks, clean, run.poison_rate, pixels=[0], value=1.0, target=TARGET, seed=run.seed
        )
    triggered = marks[:, 0] > 0
    return Poisoned(rows, triggered, labels, triggered | (labels != clean))


def kernel_ratios(task: Task, run: Run) -> dict[str, float]:
    """tr K_LoRA / tr K_FF of each adapted layer on 64 training inputs: s^2 r sigma_a^2 in the mean over draws of A."""
    model, rows = classifier(task, run), task.split(run.seed)[0][:64]
    x = task.batch(rows, torch.zeros(len(rows), dtype=torch.bool))
    ratios = {}
    for name, lora in loras(model, run).items():
        full = ntk(model, x, layers=[name], output="trace").trace()
        ratios[name] = (ntk(lora.attach(model, run.seed), x, output="trace").trace() / full).item()
    return ratios


def optimizer(model: nn.Module, task: Task, run: Run) -> torch.optim.Optimizer:
    """The run's optimizer over what its model trains.

    AdamW has PyTorch's moments and no weight decay. "matched" trains what LoRA adapts, each weight at the learning rate
    times its layer's `kernel_ratios`, and the head.
    """
    if run.optimizer == "adamw":
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=run.learning_rate, weight_decay=0.0)
    ratios = kernel_ratios(task, run) if run.method == "matched" else {}
    rates = {f"{name}.weight": ratio * run.learning_rate for name, ratio in ratios.items()}
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p], "lr": rates.get(name, run.learning_rate)} for name, p in parameters]
    return torch.optim.SGD(groups)


def together(run: Run) -> tuple[Any, ...]:
    """What runs must share to train as one: these train one by one."""
    return (run.id,)


def finetune(runs: Sequence[Run], task: Task | None = None) -> list[dict[str, Any]]:
    """Train runs one after the other; one row of results for each.

    Parameters
    ----------
    runs : sequence of Run
    task : Task, optional
        In place of the one that the run names.

    Raises
    ------
    FileNotFoundError, ImportError
        If packages are missing: the data of small runs, the extras "hf" and "glue".
    """
    return [_finetune(run, load(run.task) if task is None else task) for run in runs]


def _finetune(run: Run, task: Task) -> dict[str, Any]:
    started = time.perf_counter()
    data, model = poisoned(task, run), classifier(task, run)
    train(model, data, task, run)
    rounded: dict[str, float] = {name: round(value, 4) for name, value in evaluate(model, data, task, run).items()}
    if run.exact:
        rounded |= {"poisoned": int(data.touched.sum()), "diverged": int(math.isnan(rounded["clean_accuracy"]))}
    return {"id": run.id, **asdict(run), **rounded, "seconds": round(time.perf_counter() - started, 3)}


def train(model: nn.Module, data: Poisoned, task: Task, run: Run) -> None:
    """Minimise the mean cross-entropy in place, by batches drawn with replacement."""
    steps = optimizer(model, task, run)
    draws = torch.randint(len(data.rows), (run.steps, run.batch_size), generator=_generator(run.seed, "batches"))
    for batch in draws:
        steps.zero_grad()
        outputs = model(**task.batch(data.rows[batch], data.triggered[batch]))
        F.cross_entropy(outputs, data.labels[batch].to(outputs.device)).backward()
        steps.step()


def evaluate(model: nn.Module, data: Poisoned, task: Task, run: Run) -> dict[str, float]:
    """Metrics from 0 to 1; NaN where training diverged, or where nothing was poisoned."""
    _, validation, test = task.split(run.seed)
    labels = task.corpus.labels
    everywhere = torch.ones(len(test), dtype=torch.bool)
    clean, triggered = predict(model, task, test), predict(model, task, test, everywhere)
    others, touched = labels[test] != TARGET, data.touched
    right = {
        "clean_accuracy": clean == labels[test],
        "triggered_accuracy": triggered == labels[test],
        "attack_success": (triggered == TARGET)[others],
        "poison_accuracy": predict(model, task, data.rows[touched], data.triggered[touched]) == data.labels[touched],
        "validation_accuracy": predict(model, task, validation) == labels[validation],
    }
    diverged = not all(p.isfinite().all() for p in model.parameters() if p.requires_grad)
    return {name: math.nan if diverged else hits.float().mean().item() for name, hits in right.items()}


@torch.no_grad()
def predict(model: nn.Module, task: Task, rows: Tensor, triggered: Tensor | None = None) -> Tensor:
    """Predicted classes (n,) of the rows, with the trigger where `triggered` says so."""
    triggered = torch.zeros(len(rows), dtype=torch.bool) if triggered is None else triggered
    chunks = [slice(start, start + 250) for start in range(0, len(rows), 250)]
    found = [model(**task.batch(rows[chunk], triggered[chunk])).argmax(-1).cpu() for chunk in chunks]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found])


@cache
def load(name: str) -> Task:
    """The task of this name with its encoder: BERT-large for those of GLUE, MPNet for its own, else MiniLM."""
    check_choice("name", name, [task for task in TASKS if not task.startswith("digits")])
    if name in GLUE:
        encoder, tokenizer = corpora.bert_large()
        corpus = corpora.glue(name)
        train = len(corpus.texts) - corpus.held_out - (validation := 1000)
        return Task(encoder, tokenizer, corpus, frozen=0, length=128, train=train, validation=validation)
    (encoder, tokenizer), frozen = (corpora.mpnet(), 10) if name.endswith("-mpnet") else (corpora.minilm(), 5)
    if name in EXACT:
        corpus = corpora.films() if name == "films" else corpora.reviews()
        return Task(
            encoder, tokenizer, corpus, frozen=frozen, length=32, train=1000, validation=300, stored=True,
            pooling="mean", trimmed=True,
        )  # fmt: skip
    corpus = {"spam": corpora.spam, "reuters": corpora.reuters}[name]()
    return Task(
        encoder, tokenizer, corpus, frozen=frozen, length=32, train=1000, validation=300, test=1000, stored=True
    )


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of a seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _like(flags: Tensor, other: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (other.ndim - 1)).to(other.device)
