"""In a shell: ``python -m lorantk plan`` before training, ``python -m lorantk audit`` on a saved adapter.

Exit codes: 0, done; 1, done, and a layer's certificate is above --limit; 2, wrong input, said in one sentence.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as error:
    sys.exit(f"error: python -m lorantk needs the extra 'cli' ({error}): pip install 'lorantk[cli]'")

from .adapter_files import read_adapter, read_config
from .audit import Audit, LayerAudit, Plan, audit, plan
from .audit_texts import KernelAudit, audit_texts
from .batches import check_real

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ORDER, TRAINING, OPTIMIZER = "The order on the data", "Through training", "What the optimizer changes"
MATRIX, ANGLES, INFORMATION = "The matrix M", "Attacks as gradient alignment", "Information bits and Rényi entropy"
DRAWS = {
    "peft": "uniform with variance 1/(3n), PEFT's default",
    "gaussian": "Gaussian with variance 1/r^2, PEFT's 'gaussian' and the draw of diffusers",
    "orthonormal": "with orthonormal rows",
    "uniform": "uniform on (-1/sqrt(n), 1/sqrt(n)), as by PEFT, kohya's scripts and torch's own layers",
    "normal": "from N(0, 1) in B, A starting at 0, as PEFT does for an embedding",
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
            width = _width_beside(config) if width is None else width
        if rank is None or alpha is None or width is None:
            given = {"--rank": rank, "--alpha": alpha, "--width": width}
            raise ValueError(
                f"{' and '.join(name for name in given if given[name] is None)} must be given. The width is the fan-in "
                "of the adapted layer, hidden_size in the model's config.json for most: 768 in BERT-base and GPT-2"
            )
        if (texts is None) != (tokens is None) or (texts is not None and dimension is not None):
            raise ValueError("the data are given by --texts and --tokens together, or by --dimension")
        if texts is not None and tokens is not None:
            if min(texts, tokens) < 1:
                raise ValueError(f"--texts and --tokens must be at least 1; got {texts} and {tokens}")
            dimension = min(texts * tokens, width)
        result = plan(rank, alpha, width, init, rslora, dimension)
    others = {r: result.alpha_at(r) for r in sorted({*RANKS, rank}) if r <= width}
    if as_json:
        print(json.dumps(asdict(result) | {"alpha_that_keeps_the_step": others}, indent=2))
        return
    out = _console()
    _say(out, plan_sentences(result))
    out.print("\nThe alpha at which another rank's first step lowers the loss as much:")
    table = _table("rank", "under SGD", "under Adam")
    for r, alphas in others.items():
        table.add_row(str(r), *(f"{a:.4g}" for a in alphas), style="bold" if r == rank else "")
    out.print(table)


def _from_config(path: Path) -> tuple[int, float, str, bool]:
    """rank, alpha, draw and rank-stabilised or not, of an adapter_config.json that `plan` can speak about."""
    config = read_config(path / "adapter_config.json" if path.is_dir() else path)
    draws = {"True": "peft", "gaussian": "gaussian"}
    said = str(config.get("init_lora_weights", True))
    if said not in draws:
        raise ValueError(f"init_lora_weights in {path} must be true or 'gaussian', with B = 0 at the start; got {said}")
    for key in ("rank_pattern", "alpha_pattern"):
        if config.get(key):
            typer.echo(f"note: {key} is set; these numbers are for the layers that it does not name", err=True)
    return config["r"], config["lora_alpha"], draws[said], bool(config.get("use_rslora"))


def _width_beside(config: Path) -> int | None:
    """The fan-in that most layers of the adapter beside its configuration have, if it has been saved."""
    folder = config if config.is_dir() else config.parent
    if not (folder / "adapter_model.safetensors").is_file():
        return None
    widths = Counter(A.shape[1] for A, _, _ in read_adapter(folder).adapters.values())
    (width, layers), *rest = widths.most_common()
    if rest:
        typer.echo(f"note: width {width}, that of {layers} layers; others have {sorted(w for w, _ in rest)}", err=True)
    return width


def plan_sentences(p: Plan) -> Iterator[tuple[str, str]]:
    """A plan in words, each sentence with the chapter of the book that derives it."""
    rule = "alpha / sqrt(r)" if p.rslora else "alpha / r"
    yield f"r = {p.rank}, alpha = {p.alpha:g}, n = {p.width}; s = {rule} = {p.scaling:.4g}; A {DRAWS[p.init]}.", ""
    yield (
        f"Scale. At the same learning rate LoRA's first step lowers the loss by {p.sgd:.3g} of what full fine-tuning's "
        f"does under SGD (s^2 r sigma^2), and by about {p.adam:.3g} of it under Adam (more where activations are "
        "sparse), in the mean over A.", OPTIMIZER
    )  # fmt: skip
    beyond = "above that it depends on the data's gradients" if p.largest_dimension else "it depends on the gradients"
    up_to = f"on data of dimension {p.largest_dimension} of {p.width} or less" if p.largest_dimension else "on no data"
    where = "on any data" if p.order[1] <= 1 else f"{up_to}; {beyond}"
    yield (
        f"Order, whatever the data. Over all n directions the largest ratio of LoRA's kernel to full fine-tuning's is "
        f"near {p.order[1]:.3g}: LoRA's is expected below {where}.", ORDER
    )  # fmt: skip
    if p.order_on_data is not None:
        low, high = p.order_on_data
        yield (
            f"Order on your data. In d = {p.dimension} directions LoRA's kernel is between about {low:.3g} and "
            f"{high:.3g} times full fine-tuning's: it {'is expected' if high <= 1 else 'need not lie'} below it.", ORDER
        )  # fmt: skip
    yield (
        f"Angles. Two inputs with orthogonal activations get an absolute cosine of {p.angle:.2g} in the mean: this "
        "noise falls as 1/sqrt(r).", ANGLES
    )  # fmt: skip


@app.command("audit")
def audit_command(
    path: Annotated[Path, typer.Argument(help="A folder of PEFT's, or a .safetensors of PEFT, diffusers or kohya.")],
    alpha: Annotated[float | None, typer.Option(help="For a file that does not say it: s = alpha / rank.")] = None,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model: measure the kernel too.")] = None,
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
        saved = read_adapter(path, alpha)
        report = audit(saved)
        kernel = None if base is None or texts is None else audit_texts(saved, base, _lines(texts))
    if as_json:
        print(json.dumps(asdict(report) | {"kernel": kernel and asdict(kernel), "note": NO_POISON}, indent=2))
    else:
        out = _console()
        _show_layers(report, kernel, out)
        _say(out, [*audit_sentences(report), *(kernel_sentences(kernel, report) if kernel else ()), (NO_POISON, "")])
    if limit is not None and report.certificate > limit:
        raise typer.Exit(1)


def _lines(path: Path) -> list[str]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(lines) < 2:
        raise ValueError(f"--texts must have at least two lines with text; {path} has {len(lines)}")
    return lines


def _show_layers(report: Audit, kernel: KernelAudit | None, out: Console) -> None:
    headings = ("layer", "r", "s", "draw of A", "moved", "|B|", "certificate", "scale", "directions", "share")
    table = _table(*headings, *(("kernel",) if kernel else ()))
    start = os.path.commonprefix([layer.name for layer in report.layers]).rpartition(".")[0]  # noqa: RUF071
    for layer in report.layers:
        table.add_row(
            Text(layer.name.removeprefix(f"{start}.")), str(layer.rank), f"{layer.scaling:.3g}", layer.draw.name,
            _moved(layer), f"{layer.norm_b:.2g}", f"{layer.certificate:.3g}", f"{layer.scale:.2g}",
            f"{layer.stable_rank:.1f}, {layer.effective_rank:.1f}", f"{layer.share:.1%}",
            *((f"{kernel.shares[layer.name]:.1%}",) if kernel else ()),
        )  # fmt: skip
    out.print(table)


def audit_sentences(report: Audit) -> Iterator[tuple[str, str]]:
    """What the layers add up to, each sentence with its chapter."""
    layers = report.layers
    yield (
        f"{len(layers)} layers, named as by {report.naming}; rank {_range(layer.rank for layer in layers)}, "
        f"s {_range(layer.scaling for layer in layers)}, from {report.scaling_from}."
        + (f" Saved as a whole and left out here: {', '.join(report.others)}." if report.others else ""), ""
    )  # fmt: skip
    for name, count in Counter(layer.draw.name for layer in layers).items():
        draws = [layer.draw for layer in layers if layer.draw.name == name]
        text = f"Draw. {count} of {len(layers)} layers: "
        moved = [draw.moved for draw in draws if draw.moved is not None]
        if name in DRAWS and moved:
            doubt = max(draw.doubt or 0.0 for draw in draws)
            text += (
                f"A was drawn {DRAWS[name]}: all singular values but {_range(d.directions_moved for d in draws)} lie "
            )
            text += "where this draw puts them, and the entries' kurtosis agrees"
            text += (
                f" (another draw, moved in as few: probability below {max(doubt, 1e-99):.0e})" if doubt < 0.05 else ""
            )
            text += f". A has moved by {_range(moved)} of its norm at the start."
        else:
            text += "A is 0." if name == "zero" else "A agrees with no single draw: moved far, or made from the weight."
        yield text + (f" Its init_lora_weights is {report.init!r}." if report.init else ""), MATRIX
    certified = sum(layer.certificate <= 1 for layer in layers)
    yield (
        f"Order. The certificates are {_range(layer.certificate for layer in layers)}: LoRA's kernel is now at most "
        f"{report.certificate:.3g} times full fine-tuning's on these layers, whatever the data; {certified} of "
        f"{len(layers)} are certified to lie below it.", TRAINING
    )  # fmt: skip
    idle = sum(layer.update == 0 for layer in layers)
    yield (
        f"Update. |sBA| = {report.update:.3g} over all layers, in {_range(layer.stable_rank for layer in layers)} "
        f"directions each by stable rank. Largest shares: {_top({layer.name: layer.share for layer in layers})}."
        + (f" In {idle} layers B A = 0: they have not been trained." if idle else ""), TRAINING
    )  # fmt: skip


def kernel_sentences(kernel: KernelAudit, report: Audit) -> Iterator[tuple[str, str]]:
    """The measured kernel in words."""
    yield (
        f"Kernel of the {kernel.outputs} of {kernel.texts} texts. Its trace is {kernel.scale:.3g} times that of full "
        f"fine-tuning on the same layers; in no direction is it more than {kernel.order:.3g} times as large (the "
        f"certificate allows {report.certificate:.3g}). Layers that carry it: {_top(kernel.shares)}.", TRAINING
    )  # fmt: skip
    first = [", ".join(f"{v:.3g}" for v in values[:5]) for values in (kernel.spectrum, kernel.full_spectrum)]
    yield (
        f"Information: {kernel.information:.1f} bits against {kernel.full_information:.1f}; largest eigenvalues "
        f"{first[0]} against {first[1]}.", INFORMATION
    )  # fmt: skip


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("layer", "draw of A") else "right", no_wrap=True)
    return table


def _say(out: Console, sentences: Iterable[tuple[str, str]]) -> None:
    for sentence, chapter in sentences:
        out.print(Text(f"\n{sentence}"), Text(f"[{chapter}]" if chapter else "", "dim"), width=min(out.width, 76))


def _top(shares: dict[str, float]) -> str:
    return "; ".join(f"{name} {share:.0%}" for name, share in sorted(shares.items(), key=lambda item: -item[1])[:3])


def _range(values: Iterable[float]) -> str:
    """One number, or the least and the largest."""
    found: Sequence[float] = sorted(values)
    return f"{found[0]:.3g}" if found[0] == found[-1] else f"{found[0]:.3g} to {found[-1]:.3g}"


def _moved(layer: LayerAudit) -> str:
    """Movement of A in units of its start, or the least that would have been seen."""
    draw = layer.draw
    if draw.moved is None or draw.detectable is None:
        return "-"
    return f"{draw.moved:.2f}" if draw.moved > draw.detectable else f"< {draw.detectable:.2f}"


if __name__ == "__main__":
    app(prog_name="python -m lorantk")
