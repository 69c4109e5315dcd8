"""In a shell: ``python -m lorantk plan`` before training, ``python -m lorantk audit`` on a saved adapter.

Exit codes: 0, done; 1, done, and a layer's certificate is above --limit; 2, wrong input, said in one sentence.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .adapter_files import SavedAdapter, read_adapter, read_config
from .audit import Audit, KernelAudit, LayerAudit, Plan, audit, audit_kernel, plan
from .batches import check_real

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = 128
DRAWN = {
    "peft": "uniform with variance 1/(3n), PEFT's default",
    "gaussian": "Gaussian with variance 1/r^2",
    "orthonormal": "orthonormal rows",
}
DRAW_NAMES = {
    "uniform": "A was drawn uniformly, as PEFT, kohya's scripts and torch's own layers do",
    "gaussian": "A was drawn from a Gaussian of variance 1/r^2, PEFT's 'gaussian' and the draw of diffusers",
    "orthonormal": "A was drawn with orthonormal rows",
    "normal": "an embedding, where B was drawn from N(0, 1) and A starts at 0",
    "zero": "A is 0",
    "moved": "A has moved too far from every draw to tell, or was computed from the weight, as PiSSA does",
}
NO_POISON = (
    "None of this detects poisoned data: an adapter trained on clean and one trained on poisoned data can have the "
    "same numbers."
)


@contextmanager
def _errors() -> Iterator[None]:
    """Wrong input in one sentence on stderr, and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


@app.command("plan")
def plan_command(
    config: Annotated[Path | None, typer.Argument(help="An adapter_config.json, for rank, alpha and draw.")] = None,
    rank: Annotated[int | None, typer.Option(help="r.")] = None,
    alpha: Annotated[float | None, typer.Option(help="lora_alpha: s = alpha / r.")] = None,
    width: Annotated[int | None, typer.Option(help="n, the fan-in of the adapted layer.")] = None,
    init: Annotated[str, typer.Option(help="How A is drawn: peft, gaussian or orthonormal.")] = "peft",
    rslora: Annotated[bool, typer.Option("--rslora", help="s = alpha / sqrt(r).")] = False,
    dimension: Annotated[int | None, typer.Option(help="d, of the span of the layer's inputs.")] = None,
    texts: Annotated[int | None, typer.Option(help="With --tokens: d is at most texts times tokens.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens in a text.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Numbers only, as JSON.")] = False,
) -> None:
    """What a LoRA configuration implies before it is trained."""
    with _errors():
        if config is not None:
            if (rank, alpha, init, rslora) != (None, None, "peft", False):
                raise ValueError("give either an adapter_config.json or --rank, --alpha, --init and --rslora, not both")
            rank, alpha, init, rslora = _from_config(config)
            width = width or _width_beside(config)
        missing = [name for name, value in (("--rank", rank), ("--alpha", alpha), ("--width", width)) if value is None]
        if missing:
            raise ValueError(
                f"{' and '.join(missing)} must be given. The width is the fan-in of the adapted layer, hidden_size in "
                "the model's config.json for most: 768 in BERT-base and GPT-2, 4096 in Llama-2-7B"
            )
        if (texts is None) != (tokens is None) or (texts is not None and dimension is not None):
            raise ValueError("the data are given by --texts and --tokens together, or by --dimension")
        if texts is not None and tokens is not None and width is not None:
            if min(texts, tokens) < 1:
                raise ValueError(f"--texts and --tokens must be at least 1; got {texts} and {tokens}")
            dimension = min(texts * tokens, width)
        result = plan(cast(int, rank), cast(float, alpha), cast(int, width), init, rslora, dimension)
    others = {r: result.alpha_at(r) for r in sorted({*RANKS, rank}) if r <= width}
    if as_json:
        keep = {str(r): {"sgd": sgd, "adam": adam} for r, (sgd, adam) in others.items()}
        print(json.dumps(asdict(result) | {"alpha_that_keeps_the_step": keep}, indent=2))
        return
    out = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    for sentence, chapter in sentences(result):
        out.print(Text(sentence), Text(f"[{chapter}]\n" if chapter else "\n", "dim"))
    out.print("The alpha that keeps this first step at another rank:")
    table = Table(box=None)
    for heading in ("rank", "under SGD", "under Adam"):
        table.add_column(heading, justify="right")
    for r, (sgd, adam) in others.items():
        table.add_row(str(r), f"{sgd:.4g}", f"{adam:.4g}", style="bold" if r == rank else "")
    out.print(table)


def _from_config(path: Path) -> tuple[int, float, str, bool]:
    """rank, alpha, draw and rank-stabilised or not, of an adapter_config.json that `plan` can speak about."""
    config = read_config(path / "adapter_config.json" if path.is_dir() else path)
    draws = {"True": "peft", "gaussian": "gaussian"}
    said = str(config.get("init_lora_weights", True))
    if said not in draws:
        raise ValueError(
            f"init_lora_weights in {path} must be true or 'gaussian' for plan: {said} is no draw with B = 0"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            typer.echo(f"note: {key} is set; these numbers are for the layers that it does not name", err=True)
    return config["r"], config["lora_alpha"], draws[said], bool(config.get("use_rslora"))


def _width_beside(config: Path) -> int | None:
    """The fan-in that most layers of the adapter beside its configuration have, if it has been saved."""
    folder = config if config.is_dir() else config.parent
    if not (folder / "adapter_model.safetensors").is_file():
        return None
    widths = Counter(int(adapter.A.shape[1]) for adapter in read_adapter(folder).adapters.values())
    (width, layers), *rest = widths.most_common()
    if rest:
        typer.echo(f"note: width {width}, that of {layers} layers; others have {sorted(w for w, _ in rest)}", err=True)
    return width


def sentences(p: Plan) -> list[tuple[str, str]]:
    """A plan in words, each sentence with the chapter of the book that derives it."""
    rule = "alpha / sqrt(r)" if p.rslora else "alpha / r"
    found = [
        (f"r = {p.rank}, alpha = {p.alpha:g}, n = {p.width}; s = {rule} = {p.scaling:.4g}; A: {DRAWN[p.init]}.", ""),
        (
            f"Scale. At the same learning rate LoRA's first step moves the outputs {p.sgd:.3g} times as far as full "
            f"fine-tuning's under SGD (s^2 r sigma^2 = {p.sgd:.3g}), and {p.adam:.3g} times as far under Adam.",
            "What the optimizer changes",
        ),
        (
            f"Order, whatever the data. LoRA's kernel is at most {p.order[1]:.3g} times full fine-tuning's: it "
            + ("lies below it." if p.order[1] <= 1 else f"lies below it only on data of dimension {p.largest_dimension} "
               f"or less, of {p.width}." if p.largest_dimension else "lies below it on no data at all."),
            "The order on the data",
        ),
    ]  # fmt: skip
    if p.order_on_data is not None:
        low, high = p.order_on_data
        verdict = "lies below" if high <= 1 else "need not lie below"
        found.append((
            f"Order on your data. In d = {p.dimension} directions LoRA's kernel is between {low:.3g} and {high:.3g} times "
            f"full fine-tuning's: it {verdict} it.", "The order on the data",
        ))  # fmt: skip
    found.append((
        f"Angles. Two inputs with orthogonal activations get an absolute cosine of {p.angle:.2g} in the mean: "
        "this noise falls as 1/sqrt(r).", "Attacks as alignment",
    ))  # fmt: skip
    return found


@app.command("audit")
def audit_command(
    path: Annotated[
        Path, typer.Argument(help="A folder that PEFT saved, or a .safetensors file (PEFT, diffusers, kohya).")
    ],
    alpha: Annotated[float | None, typer.Option(help="For a file that does not say it: s = alpha / rank.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model: measure the kernel (PEFT folders).")
    ] = None,
    texts: Annotated[Path | None, typer.Option(help="Text file, one input a line, for --base.")] = None,
    limit: Annotated[float | None, typer.Option(help="Exit with 1 if a layer's certificate is above it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """What a saved adapter has become: scaling, draw, movement, certificate, directions, by layer."""
    with _errors():
        if limit is not None:
            check_real("--limit", limit, minimum=0.0)
        if (base is None) != (texts is None):
            raise ValueError("--base and --texts must be given together: the kernel is one of a model on inputs")
        adapter = read_adapter(path, alpha)
        report = audit(adapter)
        kernel = None if base is None or texts is None else _kernel(adapter, base, texts)
    if as_json:
        print(json.dumps(asdict(report) | {"kernel": kernel and asdict(kernel)}, indent=2))
    else:
        _show(report, kernel, Console(highlight=False, width=None if sys.stdout.isatty() else 140))
    if limit is not None and report.certificate > limit:
        raise typer.Exit(1)


def _show(report: Audit, kernel: KernelAudit | None, out: Console) -> None:
    """The table of layers, then what they add up to, in sentences."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "r", "s", "draw of A", "moved", "|B|", "certificate", "scale", "directions", "share"):
        table.add_column(heading, justify="left" if heading in ("layer", "draw of A") else "right", overflow="fold")
    for layer in report.layers:
        table.add_row(
            Text(layer.name), str(layer.rank), f"{layer.scaling:.3g}", layer.draw.name, _moved(layer), f"{layer.norm_b:.2g}",
            f"{layer.certificate:.3g}", f"{layer.scale:.2g}", f"{layer.stable_rank:.1f}, {layer.effective_rank:.1f}",
            f"{layer.share:.1%}",
        )  # fmt: skip
    out.print(table)
    for sentence, chapter in verdicts(report):
        out.print(Text(f"\n{sentence}"), Text(f"[{chapter}]" if chapter else "", "dim"))
    for sentence in kernel_verdicts(kernel, report) if kernel else ():
        out.print(Text(f"\n{sentence}"))
    out.print(f"\n{NO_POISON}")


def verdicts(report: Audit) -> list[tuple[str, str]]:
    """What the layers add up to, each sentence with its chapter."""
    layers = report.layers
    ranks, scalings = sorted({layer.rank for layer in layers}), sorted({layer.scaling for layer in layers})
    left_out = f" Saved as a whole and left out here: {', '.join(report.others)}." if report.others else ""
    said = f" The configuration says init_lora_weights = {report.init}." if report.init else ""
    about = f"{len(layers)} layers, named as by {report.naming}; rank {_range(ranks)}, s {_range(scalings)}."
    found = [(about + left_out, "")]
    for name in sorted({layer.draw.name for layer in layers}):
        draws = [layer.draw for layer in layers if layer.draw.name == name]
        moved = [draw.moved for draw in draws if draw.moved is not None]
        text = f"Draw. {len(draws)} of {len(layers)} layers: {DRAW_NAMES[name]}."
        if moved:
            doubt = max(draw.doubt or 0.0 for draw in draws)
            text += (
                f" It has moved by {_range(moved)} of its norm at the start, in {_range([d.directions_moved for d in draws])} "
                f"directions; another draw, moved in as few, would look so with probability below {max(doubt, 1e-300):.0e}."
            )
        found.append((text + said, "The matrix M"))
    certified = sum(layer.certificate <= 1 for layer in layers)
    found.append((
        f"Order. The certificates are {_range([layer.certificate for layer in layers])}: LoRA's kernel is now at most "
        f"{report.certificate:.3g} times full fine-tuning's on these layers, whatever the data; in {certified} of "
        f"{len(layers)} it is certified to lie below it.", "Through training",
    ))  # fmt: skip
    idle = sum(layer.update == 0 for layer in layers)
    top = sorted(layers, key=lambda layer: -layer.share)[:3]
    carried = "; ".join(f"{layer.name} {layer.share:.0%}" for layer in top)
    found.append((
        f"Update. |sBA| = {report.update:.3g} over all layers, in {_range([layer.stable_rank for layer in layers])} "
        f"directions each by stable rank. Largest shares: {carried}."
        + (f" In {idle} layers B A = 0: they have not been trained." if idle else ""), "",
    ))  # fmt: skip
    return found


def kernel_verdicts(kernel: KernelAudit, report: Audit) -> list[str]:
    """The measured kernel in words."""
    top = sorted(kernel.shares.items(), key=lambda item: -item[1])[:3]
    return [
        f"Kernel of the {kernel.outputs} of {kernel.texts} texts. Its trace is {kernel.scale:.3g} times that of full "
        f"fine-tuning on the same layers; in no direction is it more than {kernel.order:.3g} times as large (the "
        f"certificate allowed {report.certificate:.3g}).",
        f"Layers that carry it: {'; '.join(f'{name} {share:.0%}' for name, share in top)}.",
        f"Information: {kernel.information:.1f} bits against {kernel.full_information:.1f}; largest eigenvalues "
        + " against ".join(
            ", ".join(f"{v:.3g}" for v in values[:5]) for values in (kernel.spectrum, kernel.full_spectrum)
        ),
    ]


def _range(values: Sequence[float]) -> str:
    """One number, or the least and the largest."""
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _moved(layer: LayerAudit) -> str:
    """Movement of A in units of its start, or the least that would have been seen."""
    draw = layer.draw
    if draw.moved is None or draw.detectable is None:
        return "-"
    return f"{draw.moved:.2f}" if draw.moved > draw.detectable else f"< {draw.detectable:.2f}"


def _kernel(adapter: SavedAdapter, base: Path, texts: Path) -> KernelAudit:
    """Load base model, adapter and texts, without the network, and measure."""
    try:
        import peft
        import transformers
    except ModuleNotFoundError as error:
        raise ImportError("--base needs the extra 'hf': pip install 'lorantk[hf]'") from error
    if not adapter.config:
        raise ValueError("--base needs an adapter in a PEFT folder, with its adapter_config.json")
    task = adapter.config.get("task_type")
    classes = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    }
    if task not in classes:
        raise ValueError(f"--base needs an adapter of task_type {' or '.join(classes)}; this one has {task!r}")
    if not base.is_dir():
        raise ValueError(f"--base must be a folder with the base model; {base} is none")
    lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < 2:
        raise ValueError(f"--texts must have at least two lines with text; {texts} has {len(lines)}")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(base, local_files_only=True)
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = classes[task].from_pretrained(
        base, local_files_only=True, dtype=torch.float32, attn_implementation="eager", use_safetensors=True
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    wrapped = peft.PeftModel.from_pretrained(model, adapter.path.parent, is_trainable=True).eval()
    x = tokenizer(lines, padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
    return audit_kernel(wrapped, {key: x[key] for key in ("input_ids", "attention_mask")}, task == "CAUSAL_LM")


if __name__ == "__main__":
    app(prog_name="python -m lorantk")
