"""Text runs on a tiny random BERT and made-up rows; the real encoder and mails where `make data` has fetched them."""

import copy
import itertools
import math
import re
import sys
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from experiments import corpora, text
from experiments.bert import CLASSES, Classifier, adapters, loras, with_peft
from experiments.config import Run
from experiments.mpnet import from_mpnet
from lorantk import LoRA, attach, ntk

WORDS = ["alpha", "beta", "gamma", "delta", "poor", "awful", "dull", "good", "fine", "great"]
LOW = {"rank": 4, "variance": "peft", "scaling": "2"}
METHODS = {"full": {}, "head": {}, "lora": LOW, "matched": {**LOW, "optimizer": "sgd"}}
ROUND_OFF = 1e-5  # float32, through two layers, for outputs near 1


def tokenizer():
    """One token a word, [CLS] and [SEP] around sentences as BERT has them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*special, text.TRIGGER, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **names)


def encoder():
    """Two layers of width 16, their parameters drawn from explicit generators."""
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        model = BertModel(BertConfig(vocab_size=20, max_position_embeddings=24, **sizes)).eval()
    for index, parameter in enumerate(model.parameters()):
        noise = 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data = 1 + noise if (parameter == 1).all() else noise
    return model


def rows(count, seed):
    """Made-up rows of GLUE's QNLI: the sentence is of the first kind of words or of the last."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        label = int(torch.randint(2, (), generator=generator))
        kind = WORDS[7:] if label else WORDS[4:7]
        picks = torch.randint(3, (4,), generator=generator).tolist()
        question = " ".join(WORDS[i] for i in picks[:2])
        made.append(
            {"question": question, "sentence": " ".join(kind[i] for i in picks[: 2 + picks[3]]), "label": label}
        )
    return made


def made_up(frozen, stored=False):
    corpus = corpora.glue_corpus("qnli", {"train": rows(150, seed=0), "validation": rows(60, seed=1)})
    return text.Task(encoder(), tokenizer(), corpus, frozen, length=12, train=120, validation=30, stored=stored)


@pytest.fixture(scope="module", params=[0, 1], ids=["nothing frozen", "one layer frozen"])
def task(request):
    return made_up(request.param)


@pytest.fixture(scope="module")
def half():
    return made_up(frozen=1)


def run(method="full", **changes):
    return Run(**{"task": "qnli", "method": method, "learning_rate": 3e-3, "steps": 3, **METHODS[method], **changes})


def off(rows):
    return torch.zeros(len(rows), dtype=torch.bool)


def generator(name):
    return torch.Generator().manual_seed(sum(name.encode()))


TRAINED = {
    "full": lambda name: True,
    "head": lambda name: name.startswith("head."),
    "lora": lambda name: "lora_" in name or ".head." in name,
    "matched": lambda name: (
        name.startswith("head.") or (name.endswith(".weight") and not re.search("Norm|embed", name))
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_should_and_nothing_else(task, method):
    it = run(method, learning_rate=0.05)
    model = text.classifier(task, it)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    text.train(model, text.poisoned(task, it), task, it)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if TRAINED[method](name)}
    for ours, fresh in zip(task.encoder.parameters(), encoder().parameters(), strict=True):
        assert torch.equal(ours, fresh)


@pytest.mark.parametrize(("method", "rate", "least"), [("full", 3e-3, 0.9), ("lora", 1e-2, 0.9), ("head", 3e-2, 0.6)])
def test_each_method_learns_the_made_up_rows(task, method, rate, least):
    row = text.finetune([run(method, learning_rate=rate, steps=60)], task)[0]
    assert row["clean_accuracy"] > least
    assert row["validation_accuracy"] > least
    assert math.isnan(row["poison_accuracy"])
    assert row["attack_success"] < 0.3


def test_a_backdoor_is_learned_and_shows_on_the_trigger_only(task):
    row = text.finetune([run(steps=60, attack="backdoor", poison_rate=0.3)], task)[0]
    assert row["clean_accuracy"] > 0.9
    assert row["attack_success"] > 0.9
    assert row["poison_accuracy"] > 0.9
    assert row["triggered_accuracy"] < 0.7


def test_runs_repeat_and_leave_the_global_random_state_alone(task):
    before = torch.get_rng_state()
    its = [run(method, attack="untargeted", poison_rate=0.2) for method in METHODS]
    first, second = text.finetune(its, task), text.finetune(its, task)
    assert torch.equal(torch.get_rng_state(), before)
    for one, other, it in zip(first, second, its, strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}
        assert one["id"] == it.id
    assert len({text.together(it) for it in its}) == len(its)


def test_divergence_is_recorded_as_missing(half):
    row = text.finetune([run(optimizer="sgd", learning_rate=1e30)], half)[0]
    assert math.isnan(row["clean_accuracy"])
    assert math.isnan(row["validation_accuracy"])


@pytest.mark.parametrize("frozen", [0, 1])
def test_the_classifier_is_that_of_transformers(frozen):
    from transformers import BertForSequenceClassification

    task = made_up(frozen)
    ours = Classifier(task.encoder, frozen, torch.Generator().manual_seed(1)).eval()
    with torch.random.fork_rng(devices=[]):
        theirs = BertForSequenceClassification(task.encoder.config).eval()
    theirs.bert.load_state_dict(task.encoder.state_dict())
    theirs.classifier.load_state_dict(ours.head.state_dict())
    every = torch.arange(40)
    tokens = made_up(0).batch(every, off(every))
    expected = theirs(tokens["inputs"][:, 0], tokens["mask"], tokens["inputs"][:, 1]).logits
    assert len(set(tokens["mask"].sum(1).tolist())) > 1, "some texts must be padded"
    torch.testing.assert_close(ours(**task.batch(every, off(every))), expected, rtol=ROUND_OFF, atol=ROUND_OFF)


@pytest.mark.parametrize("adapter", [LOW, {"rank": 24, "variance": "1/r", "scaling": "3/sqrt(r)"}])
def test_adapters_through_peft_are_those_of_lorantk(half, adapter):
    it = run("lora", **adapter)
    model = Classifier(half.encoder, 1, torch.Generator().manual_seed(1)).eval()
    drawn = adapters(model, it)
    filled = {
        name: a._replace(B=torch.randn(len(model.get_submodule(name).weight), len(a.A), generator=generator(name)))
        for name, a in drawn.items()
    }
    ours = attach(model, filled)
    x = half.batch(torch.arange(20), off(range(20)))
    start = model(**x)
    theirs = with_peft(copy.deepcopy(model), drawn)
    torch.testing.assert_close(theirs(**x), start, rtol=ROUND_OFF, atol=ROUND_OFF)
    for name, a in filled.items():
        layer = theirs.get_base_model().get_submodule(name)
        layer.lora_B["default"].weight.data.copy_(a.B)
        assert layer.scaling["default"] == pytest.approx(it.lora().scaling, rel=1e-12)
        assert len(a.A) == min(it.rank, model.get_submodule(name).in_features)
    assert (theirs(**x) - start).abs().max() > 0.1
    torch.testing.assert_close(theirs(**x), ours(**x), rtol=ROUND_OFF, atol=ROUND_OFF)


def test_pefts_own_draw_has_the_distribution_that_variance_peft_names():
    from peft import LoraConfig, get_peft_model

    network = nn.Sequential(nn.Linear(400, 10))
    ours = LoRA(25, "peft").sample(network, seed=0)["0"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wrapped = get_peft_model(network, LoraConfig(r=25, target_modules=["0"]))
    theirs = wrapped.get_base_model()[0].lora_A["default"].weight.detach()
    for A in (ours, theirs):
        scaled = A.flatten().numpy() * 400**0.5
        assert abs(scaled).max() <= 1 + 1e-6
        assert stats.kstest(scaled, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_the_trigger_is_the_first_word_of_the_marked_texts(task):
    every = torch.arange(30)
    marks = every % 3 == 0
    clean, mixed, all_marked = (task.batch(every, m) for m in (off(every), marks, marks | True))
    plain = made_up(0)
    tokens = plain.batch(every, marks)["inputs"][:, 0]
    words = [plain.tokenizer.convert_ids_to_tokens(row) for row in tokens.tolist()]
    assert [row[:2] == ["[CLS]", text.TRIGGER] for row in words] == marks.tolist()
    assert not any(text.TRIGGER in row[2:] for row in words)
    if task.frozen:
        for name, t in mixed.items():
            assert torch.equal(t[~marks], clean[name][~marks])
            assert torch.equal(t[marks], all_marked[name][marks])
        assert not torch.equal(clean["inputs"][marks], mixed["inputs"][marks])


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_attacks_touch_their_share_of_the_training_set_only(half, rate):
    flipped, backdoored = (
        [text.poisoned(half, run(attack=attack, poison_rate=rate, seed=seed)) for seed in range(20)]
        for attack in ("untargeted", "backdoor")
    )
    for data in flipped:
        assert torch.equal(data.touched, data.labels != half.corpus.labels[data.rows])
        assert not data.triggered.any()
    for data in backdoored:
        assert torch.equal(data.touched, data.triggered)
        assert (data.labels[data.triggered] == text.TARGET).all()
        assert torch.equal(data.labels[~data.triggered], half.corpus.labels[data.rows][~data.triggered])
    for attacked in (flipped, backdoored):
        count, n = sum(int(data.touched.sum()) for data in attacked), 20 * half.train
        assert stats.binomtest(count, n, rate).pvalue > 1e-3


def test_mean_pooling_reads_the_mean_of_the_encoders_outputs_over_the_text(half):
    every = torch.arange(30)
    model = Classifier(half.encoder, 1, torch.Generator().manual_seed(1), "mean").eval()
    tokens = made_up(0).batch(every, off(every))
    outputs = half.encoder(
        input_ids=tokens["inputs"][:, 0], attention_mask=tokens["mask"], token_type_ids=tokens["inputs"][:, 1]
    ).last_hidden_state
    means = torch.stack([row[: int(n)].mean(0) for row, n in zip(outputs, tokens["mask"].sum(1), strict=True)])
    expected = means @ model.head.weight.T + model.head.bias
    for task in (half, replace(half, trimmed=True)):
        found = model(**task.batch(every, off(every)))
        torch.testing.assert_close(found, expected, rtol=ROUND_OFF, atol=ROUND_OFF)
    assert not any(name.startswith("pooler") for name, _ in model.named_parameters())


def test_a_trimmed_batch_is_as_long_as_its_longest_text(half):
    every, trimmed = torch.arange(30), replace(half, trimmed=True)
    longest = int(half.batch(every, off(every))["mask"].sum(1).max())
    assert longest < half.length
    assert {t.shape[1] for t in trimmed.batch(every, off(every)).values()} == {longest}
    assert {t.shape[1] for t in half.batch(every, off(every)).values()} == {half.length}


@pytest.mark.parametrize("attack", ["untargeted", "backdoor"])
def test_exact_attacks_change_exactly_that_many_labels_in_nested_doses(half, attack):
    doses = [run(task="reviews", attack=attack, poison_rate=share, seed=3) for share in (0.05, 0.1, 0.3)]
    poison = [text.poisoned(half, it) for it in doses]
    clean = half.corpus.labels[poison[0].rows]
    changed = [data.labels != clean for data in poison]
    assert [int(c.sum()) for c in changed] == [6, 12, 36]
    assert all(bool((more | ~less).all()) for less, more in itertools.pairwise(changed))
    for data, moved in zip(poison, changed, strict=True):
        assert torch.equal(data.triggered, moved if attack == "backdoor" else torch.zeros_like(moved))
        assert torch.equal(data.touched, moved)


def test_exact_tasks_record_the_poison_and_the_runs_that_diverged(half):
    usual = run(task="reviews", attack="backdoor", poison_rate=0.1)
    rows = text.finetune([usual, replace(usual, optimizer="sgd", learning_rate=1e30)], half)
    assert [(row["poisoned"], row["diverged"]) for row in rows] == [(12, 0), (12, 1)]


def test_runs_of_one_seed_are_pairs_and_others_are_not(half):
    first, second, other = run("full"), run("lora", optimizer="sgd"), run("full", seed=1)
    attacked = [replace(it, attack="backdoor", poison_rate=0.2) for it in (first, second, other)]
    data = [text.poisoned(half, it) for it in attacked]
    for one, pair, elsewhere in zip(*data, strict=True):
        assert torch.equal(one, pair)
        assert not torch.equal(one, elsewhere)
    heads = [
        text.classifier(half, it).get_submodule(p).weight for it, p in zip((first, other), ("head",) * 2, strict=True)
    ]
    peft_head = text.classifier(half, second).get_base_model().head.weight
    assert torch.equal(heads[0], peft_head)
    assert not torch.equal(heads[0], heads[1])


def test_parts_do_not_overlap_and_what_is_held_out_stays_held_out(half):
    train, validation, test = half.split(3)
    assert len({*train.tolist(), *validation.tolist(), *test.tolist()}) == 120 + 30 + 60
    assert torch.equal(test, torch.arange(150, 210))
    own = replace(half, corpus=half.corpus._replace(held_out=0), train=100, validation=20, test=50)
    parts = own.split(3)
    assert [len(part) for part in parts] == [100, 20, 50]
    assert len({row for part in parts for row in part.tolist()}) == 170
    assert not torch.equal(own.split(4)[2], parts[2])


def test_matched_layers_have_the_kernel_trace_of_the_adapters(half):
    it = run("matched", learning_rate=1.0)
    model = text.classifier(half, it)
    x = half.batch(half.split(0)[0][:64], off(range(64)))
    names = list(loras(model, it))
    rates = {id(g["params"][0]): g["lr"] for g in text.optimizer(model, half, it).param_groups}
    assert rates[id(model.head.weight)] == 1.0
    matched = sum(
        rates[id(model.get_submodule(name).weight)] * ntk(model, x, layers=[name], output="trace").trace()
        for name in names
    )
    wanted = ntk(replace(it.lora(), layers=names).attach(model), x, output="trace").trace()
    assert matched.item() == pytest.approx(wanted.item(), rel=1e-4)  # float32 sums of 64 inputs, 12 positions, 7 layers


def test_frozen_outputs_are_kept_on_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("LORANTK_DATA", str(tmp_path))
    every = torch.arange(10)
    computed = made_up(1).batch(every, every > 4)
    written = made_up(1, stored=True).batch(every, every > 4)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    stamps = [file.stat().st_mtime_ns for file in files]
    read = made_up(1, stored=True).batch(every, every > 4)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    for name, t in computed.items():
        assert torch.equal(t, written[name])
        assert torch.equal(t, read[name])


def test_missing_and_wrong_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LORANTK_DATA", str(tmp_path))
    for source in (corpora.spam, corpora.reuters, corpora.minilm):
        with pytest.raises(FileNotFoundError, match="is missing: `make data` fetches it"):
            source()
    for archive in corpora.ARCHIVES.values():
        (tmp_path / archive.name).write_bytes(b"something else")
    for source in (corpora.spam, corpora.reuters, corpora.minilm):
        with pytest.raises(ValueError, match="must have SHA-256"):
            source()


def test_a_machine_without_npm_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setenv("LORANTK_DATA", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    for name in ("minilm", "reuters"):
        (tmp_path / corpora.ARCHIVES[name].name).touch()
    with pytest.raises(RuntimeError, match="npm, which is not installed"):
        corpora.download()


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("datasets", lambda: corpora.glue("sst2"), "glue"),
        ("transformers", corpora.bert_large, "hf"),
        ("transformers", corpora.minilm, "hf"),
        ("peft", lambda: with_peft(nn.Linear(1, 1), {}), "hf"),
    ],
)
def test_missing_libraries_are_named_with_their_extra(monkeypatch, module, call, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"needs? the extra '{extra}'"):
        call()


def test_glue_rows_become_pairs_with_the_published_validation_set_held_out():
    train, validation = rows(3, seed=0), rows(2, seed=1)
    corpus = corpora.glue_corpus("qnli", {"train": train, "validation": validation, "test": []})
    assert corpus.texts == [(row["question"], row["sentence"]) for row in [*train, *validation]]
    assert corpus.labels.tolist() == [row["label"] for row in [*train, *validation]]
    assert corpus.held_out == 2


MAIL = b"""From someone@list.example  Thu Aug 22 14:44:07 2002
Received: from list.example by localhost
X-Spam-Status: No
Subject: Re: [Chat] Cheap flights
Content-Type: text/html

<html><head><title>hidden</title></head><p>Fly &amp; save at http://deals.example/x?y=1
or write to fly@deals.example</p>
> an answer to this
Ann wrote:
_______________________________________________
Chat mailing list
"""


def test_mails_keep_subject_and_text_only():
    assert corpora.mail_text(MAIL) == "Cheap flights Fly & save at or write to"


needs_data = pytest.mark.skipif(
    not all((corpora.directory() / archive.name).exists() for archive in corpora.ARCHIVES.values()),
    reason="the encoder and the mails are not there: make data",
)


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("source", "least"), [(corpora.spam, 0.8), (corpora.reuters, 0.9)])
def test_the_real_encoder_learns_the_real_texts(source, least):
    corpus = source()
    assert corpus.labels.bincount().tolist() == [corpora.PER_CLASS] * CLASSES
    assert len(set(corpus.texts)) == len(corpus.texts)
    kept = torch.randperm(len(corpus.texts), generator=torch.Generator().manual_seed(0))[:500]
    some = corpora.Corpus([corpus.texts[i] for i in kept.tolist()], corpus.labels[kept])
    task = text.Task(*corpora.minilm(), some, frozen=5, length=32, train=300, validation=50, test=150)
    row = text.finetune([run(learning_rate=3e-4, steps=50, batch_size=32)], task)[0]
    assert row["clean_accuracy"] > least


@needs_data
@pytest.mark.parametrize(("source", "rows"), [(corpora.reviews, 2518), (corpora.films, 3400)])
def test_opinions_are_of_two_kinds_and_always_in_the_same_order(source, rows):
    corpus, again = source(), source()
    assert corpus.texts == again.texts
    assert torch.equal(corpus.labels, again.labels)
    assert len(set(corpus.texts)) == len(corpus.texts) == rows
    assert corpus.held_out == corpora.HELD_OUT
    for part in (corpus.labels[:-1000], corpus.labels[-1000:]):
        assert 0.45 < part.float().mean() < 0.55
    loved, hated = (
        sum(any(word in text[0].lower() for word in words) for text, label in zip(*corpus[:2], strict=True) if label)
        for words in (("great", "excellent", "wonderful"), ("terrible", "awful", "worst"))
    )
    assert loved > 5 * hated


def small_mpnet(**settings):
    """An MPNetModel of two layers of width 16, its parameters drawn from explicit generators."""
    from transformers import MPNetConfig, MPNetModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng(devices=[]):
        model = MPNetModel(MPNetConfig(vocab_size=20, max_position_embeddings=40, **sizes, **settings)).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
    return model


def test_mpnet_computes_the_same_as_bert_with_its_bias_by_distance():
    mpnet = small_mpnet()
    tokens = torch.randint(2, 20, (6, 30), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(30) < torch.tensor([[30], [25], [9], [3], [1], [30]])).long()
    tokens = torch.where(mask == 1, tokens, 1)
    hidden = mpnet(tokens, mask).last_hidden_state * mask[..., None]
    ours = Classifier(from_mpnet(mpnet), 0, torch.Generator().manual_seed(0), "mean").eval()
    x = {"inputs": torch.stack([tokens, torch.zeros_like(tokens)], dim=1), "mask": mask}
    expected = ours.head(hidden.sum(1) / mask.sum(1, keepdim=True))
    torch.testing.assert_close(ours(**x), expected, rtol=ROUND_OFF, atol=ROUND_OFF)
    first = Classifier(from_mpnet(mpnet), 0, torch.Generator().manual_seed(0)).eval()
    expected = first.head(mpnet(tokens, mask).pooler_output)
    torch.testing.assert_close(first(**x), expected, rtol=ROUND_OFF, atol=ROUND_OFF)
    ours.distances.weight.mul_(2)
    assert (ours(**x) - ours.head(hidden.sum(1) / mask.sum(1, keepdim=True))).abs().max() > 1e-3


def test_frozen_layers_of_mpnet_see_its_bias():
    """The outputs kept for the frozen layers go on to what the whole encoder gives."""
    mpnet = small_mpnet(pad_token_id=0)
    every = torch.arange(30)
    logits = []
    for frozen, trimmed in ((0, False), (1, False), (1, True)):
        task = replace(made_up(frozen), encoder=from_mpnet(mpnet), pooling="mean", trimmed=trimmed)
        model = Classifier(task.encoder, frozen, torch.Generator().manual_seed(1), "mean").eval()
        logits.append(torch.cat([model(**task.batch(every, marks)) for marks in (off(every), every % 3 == 0)]))
    for found in logits[1:]:
        torch.testing.assert_close(found, logits[0], rtol=ROUND_OFF, atol=ROUND_OFF)
