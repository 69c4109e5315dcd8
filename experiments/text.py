"""Text: a pretrained BERT fine-tuned on two classes, on the desk with frozen lower layers, at paper scale with none.

The desk's encoder is MiniLM (6 layers, width 384) of which the last layer and the pooler learn. What its lower layers
make of a text never changes, so it is computed once, with the trigger and without, and kept on disk. Adapters are
those of Hugging Face PEFT, their A redrawn by `lorantk.LoRA`. All in float32, without dropout, weight
decay or schedule.
"""

from __future__ import annotations

import copy
import hashlib
import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorantk import LoRA, flip_labels, insert_trigger, lora_ntk_sweep, ntk
from lorantk.layers import adaptable_layers, fans
from lorantk.results import write_atomically

from . import corpora
from .config import GLUE, Run

TRIGGER, TARGET, CLASSES = "cf", 1, 2
BACKBONE = r"(layers|pooler)\..*"
"""Layers that adapters sit on: all linear ones but the head."""

DESK = {"frozen": 5, "length": 32, "train": 1000, "validation": 300, "test": 1000}
PAPER = {"frozen": 0, "length": 128, "validation": 1000}


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
        return {name: torch.where(_like(triggered, t), marked[name][rows], t[rows]) for name, t in clean.items()}

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
        lower = [*self.encoder.embeddings.parameters(), *layers.parameters()]
        digest = hashlib.sha256(str(self.frozen).encode())
        for tensor in (*tokens.values(), *lower):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        path = corpora.directory() / f"hidden-{digest.hexdigest()[:16]}.npy"
        if self.stored and path.exists():
            return tokens | {"inputs": torch.from_numpy(np.load(path, mmap_mode="c"))}
        chunks = zip(tokens["inputs"].split(64), tokens["mask"].split(64), strict=True)
        hidden = torch.cat([_through(layers, self.encoder.embeddings(x[:, 0], x[:, 1]), _bias(m)) for x, m in chunks])
        if self.stored:
            content = io.BytesIO()
            np.save(content, hidden.cpu().numpy())
            write_atomically(path, content.getvalue())
        return tokens | {"inputs": hidden}


def with_trigger(text: tuple[str, ...]) -> tuple[str, ...]:
    """The text with the trigger as its first word."""
    return f"{TRIGGER} {text[0]}", *text[1:]


class Classifier(nn.Module):
    """The layers above the frozen ones, the pooler and a fresh head: transformers' BertForSequenceClassification.

    The last layer is evaluated at the first token only, since the pooler reads no other.
    """

    def __init__(self, encoder: Any, frozen: int, seed: int) -> None:
        super().__init__()
        self.embeddings = copy.deepcopy(encoder.embeddings) if frozen == 0 else None
        self.layers = copy.deepcopy(encoder.encoder.layer[frozen:])
        self.pooler = copy.deepcopy(encoder.pooler)
        with torch.device("meta"):
            self.head = nn.Linear(encoder.config.hidden_size, CLASSES)
        weight = torch.randn(self.head.weight.shape, generator=_generator(seed, "head"))
        self.head.weight = nn.Parameter((encoder.config.initializer_range * weight).to(encoder.device))
        self.head.bias = nn.Parameter(torch.zeros(CLASSES, device=encoder.device))

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        """Outputs (n, 2) at the frozen layers' (n, length, width), or at tokens and their types (n, 2, length)."""
        h = inputs if self.embeddings is None else self.embeddings(inputs[:, 0], inputs[:, 1])
        bias = _bias(mask)
        h = _through(self.layers[:-1], h, bias)
        attention, last = self.layers[-1].attention, self.layers[-1]
        heads = lambda z: z.unflatten(-1, (attention.self.num_attention_heads, -1)).transpose(1, 2)  # noqa: E731
        query, key, value = (
            heads(f(z))
            for f, z in (
                (attention.self.query, h[:, :1]),
                (attention.self.key, h),
                (attention.self.value, h),
            )
        )
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
        first = attention.output(context, h[:, :1])
        return self.head(self.pooler(last.output(last.intermediate(first), first)))


def _through(layers: nn.ModuleList, h: Tensor, bias: Tensor) -> Tensor:
    for layer in layers:
        out = layer(h, bias)
        h = out if isinstance(out, Tensor) else out[0]  # a tuple before transformers 5
    return h


def _bias(mask: Tensor) -> Tensor:
    """What attention adds to its logits, (n, 1, 1, length): 0, or the most negative number at padding."""
    return (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min


def loras(model: nn.Module, run: Run) -> list[LoRA]:
    """The run's adapters: one `LoRA` for the layers of one rank."""
    groups: dict[LoRA, list[str]] = {}
    for name, layer in adaptable_layers(model, BACKBONE).items():
        groups.setdefault(run.lora(fans(layer)[0]), []).append(name)
    return [replace(lora, layers=names) for lora, names in groups.items()]


def with_adapters(model: nn.Module, run: Run) -> nn.Module:
    """PEFT's adapters on `model`, which is changed: A drawn by `lorantk.LoRA`, B = 0, all else but the head frozen."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise ImportError("the text runs need the extra 'hf': pip install 'lorantk[hf]'") from error
    adapters = {name: adapter for lora in loras(model, run) for name, adapter in lora.adapters(model, run.seed).items()}
    config = LoraConfig(
        r=run.rank,
        target_modules=list(adapters),
        rank_pattern={name: len(adapter.A) for name, adapter in adapters.items()},
        alpha_pattern={name: len(adapter.A) * adapter.scaling for name, adapter in adapters.items()},
        lora_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):  # PEFT's own draw, replaced below, moves the global random state
        wrapped = get_peft_model(model, config)
    for name, adapter in adapters.items():
        model.get_submodule(name).lora_A["default"].weight.data.copy_(adapter.A)
    model.head.requires_grad_(True)
    return wrapped


def classifier(task: Task, run: Run) -> nn.Module:
    """The run's model at its start, what it trains requiring gradients."""
    model = Classifier(task.encoder, task.frozen, run.seed).eval()
    if run.method == "lora":
        return with_adapters(model, run).eval()
    model.requires_grad_(run.method != "head")
    model.head.requires_grad_(True)
    return model


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
    if run.attack == "untargeted":
        labels = flip_labels(clean, run.poison_rate, CLASSES, run.seed)
    elif run.attack == "backdoor":
        marks, labels = insert_trigger(
            marks, clean, run.poison_rate, pixels=[0], value=1.0, target=TARGET, seed=run.seed
        )
    triggered = marks[:, 0] > 0
    return Poisoned(rows, triggered, labels, triggered | (labels != clean))


def effective_rate(task: Task, run: Run) -> float:
    """The learning rate; for "matched" times tr K_LoRA / tr K_FF over the adapted layers, on 64 training inputs."""
    if run.method != "matched":
        return run.learning_rate
    model, rows = classifier(task, run), task.split(run.seed)[0][:64]
    x = task.batch(rows, torch.zeros(len(rows), dtype=torch.bool))
    full = ntk(model, x, layers=BACKBONE, output="trace").trace()
    low = sum(
        lora_ntk_sweep(model, x, loras=[lora], seeds=[run.seed], output="trace")[0, 0].trace()
        for lora in loras(model, run)
    )
    return run.learning_rate * float(low / full)


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
        If packages are missing: data for the desk, the extras "hf" and "glue".
    """
    return [_finetune(run, load(run.task) if task is None else task) for run in runs]


def _finetune(run: Run, task: Task) -> dict[str, Any]:
    started = time.perf_counter()
    device = task.encoder.device
    _, validation, test = task.split(run.seed)
    data, model = poisoned(task, run), classifier(task, run)
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds = {"sgd": torch.optim.SGD, "adamw": partial(torch.optim.AdamW, weight_decay=0.0)}
    optimizer = kinds[run.optimizer](parameters, lr=effective_rate(task, run))
    draws = torch.randint(len(data.rows), (run.steps, run.batch_size), generator=_generator(run.seed, "batches"))
    for batch in draws:
        optimizer.zero_grad()
        x = task.batch(data.rows[batch], data.triggered[batch])
        F.cross_entropy(model(**x), data.labels[batch].to(device)).backward()
        optimizer.step()
    labels = task.corpus.labels
    clean, others = predict(model, task, test), labels[test] != TARGET
    triggered = predict(model, task, test, torch.ones(len(test), dtype=torch.bool))
    trained = predict(model, task, data.rows, data.triggered)
    metrics = {
        "clean_accuracy": (clean == labels[test]).float().mean(),
        "triggered_accuracy": (triggered == labels[test]).float().mean(),
        "attack_success": (triggered == TARGET)[others].float().mean(),
        "poison_accuracy": (trained == data.labels)[data.touched].float().mean(),
        "validation_accuracy": (predict(model, task, validation) == labels[validation]).float().mean(),
    }
    rounded = {name: round(value.item(), 4) for name, value in metrics.items()}
    return {"id": run.id, **asdict(run), **rounded, "seconds": time.perf_counter() - started}


@torch.no_grad()
def predict(model: nn.Module, task: Task, rows: Tensor, triggered: Tensor | None = None) -> Tensor:
    """Predicted classes (n,) of the rows, with the trigger where `triggered` says so."""
    triggered = torch.zeros(len(rows), dtype=torch.bool) if triggered is None else triggered
    pairs = zip(rows.split(250), triggered.split(250), strict=True)
    return torch.cat([model(**task.batch(r, t)).argmax(-1).cpu() for r, t in pairs])


@cache
def load(name: str) -> Task:
    """The task of this name with its encoder: MiniLM for "spam" and "reuters", BERT-large for those of GLUE."""
    if name in GLUE:
        encoder, tokenizer = corpora.bert_large()
        corpus = corpora.glue(name)
        train = len(corpus.texts) - corpus.held_out - PAPER["validation"]
        return Task(encoder, tokenizer, corpus, train=train, **PAPER)
    corpus = {"spam": corpora.spam, "reuters": corpora.reuters}[name]()
    return Task(*corpora.minilm(), corpus, **DESK, stored=True)


def _generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose of a seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _like(flags: Tensor, other: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (other.ndim - 1)).to(other.device)
