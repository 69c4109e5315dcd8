"""The kernel of a saved adapter on texts, against Jacobians made one text at a time with autograd."""

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from lorantk.__main__ import app
from lorantk.adapter_files import read_adapter
from lorantk.audit import audit
from lorantk.audit_texts import audit_texts

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
TEXTS = ["the film was very good", "a bad story", "not long and not short but good", "the actor never ends"]
WORDS = sorted({word for text in TEXTS for word in text.split()})


@pytest.fixture(scope="module", params=["CAUSAL_LM", "SEQ_CLS"])
def made(request, tmp_path_factory):
    """Folders of a tiny base model and of an adapter on it, B not 0; its task."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    root = tmp_path_factory.mktemp("texts")
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")
    tokenizer.save_pretrained(root / "base")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS) + 2, n_embd=32, n_head=2, n_layer=2, n_positions=32, pad_token_id=0
    )
    kind = transformers.GPT2LMHeadModel if request.param == "CAUSAL_LM" else transformers.GPT2ForSequenceClassification
    kind(config).save_pretrained(root / "base")
    model = kind.from_pretrained(root / "base")
    lora = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, task_type=request.param
    )
    model = peft.get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(root / "adapter")
    return root / "base", root / "adapter", request.param


def jacobians(model, tokenizer, task, wanted):
    """Outputs of one text at a time, differentiated by the parameters asked for: (n C, parameters) for each layer."""
    rows = {name: [] for name in wanted}
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        if task == "CAUSAL_LM":
            logp = logits[0, :-1].log_softmax(-1)
            outputs = [logp[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum()]
        else:
            outputs = list(logits[0])
        for output in outputs:
            for name, parameters in wanted.items():
                grads = torch.autograd.grad(output, parameters, retain_graph=True)
                rows[name].append(torch.cat([g.flatten() for g in grads]))
    return {name: torch.stack(found).double() for name, found in rows.items()}


def test_the_kernel_against_autograd(made):
    base, folder, task = made
    saved = read_adapter(folder)
    found = audit_texts(saved, base, TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    kind = transformers.AutoModelForCausalLM if task == "CAUSAL_LM" else transformers.AutoModelForSequenceClassification
    model = peft.PeftModel.from_pretrained(kind.from_pretrained(base), folder, is_trainable=True).eval()
    sides = {n: [p for k, p in model.named_parameters() if f".{n}.lora_" in k] for n in saved.adapters}
    lora = jacobians(model, tokenizer, task, sides)
    merged = model.merge_and_unload().requires_grad_(True)
    full = jacobians(merged, tokenizer, task, {n: [merged.get_submodule(n).weight] for n in saved.adapters})
    K, F = (torch.cat(list(J.values()), 1) for J in (lora, full))
    assert found.scale == pytest.approx(float(K.square().sum() / F.square().sum()), rel=1e-4)
    for name in saved.adapters:
        assert found.shares[name] == pytest.approx(float(lora[name].square().sum() / K.square().sum()), rel=1e-3)
        ratio = lora[name].square().sum() / full[name].square().sum()
        assert found.scales[name] == pytest.approx(float(ratio), rel=1e-3)
    values = torch.linalg.svdvals(K).square()
    torch.testing.assert_close(
        torch.tensor(found.spectrum, dtype=torch.float64), values, rtol=1e-3, atol=1e-6 * values[0]
    )
    kept = torch.linalg.svdvals(F).square()
    kept = kept[kept > 1e-5 * kept[0]]
    assert found.full_information == pytest.approx(float(kept.log2().sum() / 2), abs=0.05)
    # K <= order F, and the order is met: the largest generalised eigenvalue
    gap = torch.linalg.eigvalsh(found.order * F @ F.T - K @ K.T)
    assert gap[0] > -1e-4 * float(F.square().sum())
    assert 0 < found.order <= audit(saved).certificate * (1 + 1e-4)
    assert found.scale <= found.order


def test_the_command(made, tmp_path):
    base, folder, _ = made
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    out = CliRunner().invoke(app, ["audit", str(folder), "--base", str(base), "--texts", str(tmp_path / "texts.txt")])
    assert out.exit_code == 0
    assert f"of {len(TEXTS)} texts" in " ".join(out.stdout.split())
    assert "Layers that carry it: " in " ".join(out.stdout.split())
    out = CliRunner().invoke(
        app, ["audit", str(folder), "--base", str(base), "--texts", str(tmp_path / "texts.txt"), "--json"]
    )
    kernel = json.loads(out.stdout)["kernel"]
    assert kernel["texts"] == len(TEXTS)
    assert math.isclose(sum(kernel["shares"].values()), 1.0, rel_tol=1e-9)


def test_a_base_model_of_another_adapter_is_refused(made, tmp_path):
    from safetensors.torch import save_file

    base, folder, _ = made
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    tensors = {f"base_model.model.x.lora_{s}.weight": torch.ones(4, 4) for s in "AB"}
    save_file(tensors, other / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="has no 'x'"):
        audit_texts(read_adapter(other), base, TEXTS)
