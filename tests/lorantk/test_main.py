"""The two commands: numbers and sentences, exit codes, and wrong input said in one sentence."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from lorantk.__main__ import NO_POISON, app
from lorantk.audit import plan

CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "init_lora_weights": True, "task_type": "CAUSAL_LM"}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def adapter(folder, config=CONFIG, B=None):
    folder.mkdir(exist_ok=True)
    A = (2 * torch.rand(4, 256, generator=torch.Generator().manual_seed(0)) - 1) / 16
    names = {
        "base_model.model.q.lora_A.weight": A,
        "base_model.model.q.lora_B.weight": torch.zeros(64, 4) if B is None else B,
    }
    save_file(names, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_plan_says_numbers_and_chapters():
    out = run("plan", "--rank", 8, "--alpha", 16, "--width", 768, "--texts", 10, "--tokens", 20)
    assert out.exit_code == 0
    text = " ".join(out.stdout.split())
    p = plan(8, 16.0, 768, dimension=200)
    for number in (p.sgd, p.adam, p.order[1], p.order_on_data[1], p.angle):
        assert f"{number:.3g}"[:4] in text
    assert "In d = 200 directions" in text
    assert "LoRA's is expected below on data of dimension 448 of 768 or less; above that" in text
    assert "it is expected below it" in text
    for chapter in ("The order on the data", "What the optimizer changes", "Attacks as gradient alignment"):
        assert f"[{chapter}]" in text


def test_plan_as_json_from_flags_and_from_a_configuration(tmp_path):
    flags = json.loads(run("plan", "--rank", 4, "--alpha", 8, "--width", 256, "--json").stdout)
    assert flags["order"][1] == plan(4, 8.0, 256).order[1]
    assert flags["alpha_that_keeps_the_step"]["16"] == pytest.approx([16.0, 8.0])
    folder = adapter(tmp_path / "a")  # the width is that of the layers saved beside it
    for path in (folder, folder / "adapter_config.json"):
        assert json.loads(run("plan", path, "--json").stdout) == flags
    (tmp_path / "alone.json").write_text(json.dumps(CONFIG | {"use_rslora": True, "init_lora_weights": "gaussian"}))
    assert json.loads(run("plan", tmp_path / "alone.json", "--width", 100, "--json").stdout)["scaling"] == 4.0


def test_audit_says_what_it_found_and_that_it_detects_no_poison(tmp_path):
    out = run("audit", adapter(tmp_path / "a"))
    text = " ".join(out.stdout.split())
    assert out.exit_code == 0
    assert NO_POISON in text
    assert "1 layers, named as by PEFT; rank 4, s 2, from adapter_config.json." in text
    assert "A was drawn uniform on" in text
    assert "In 1 layers B A = 0: they have not been trained." in text


def test_audit_as_json_and_its_exit_codes(tmp_path):
    folder = adapter(tmp_path / "a", B=torch.ones(64, 4))
    report = json.loads(run("audit", folder, "--json").stdout)
    assert report["kernel"] is None
    assert report["note"] == NO_POISON
    (layer,) = report["layers"]
    assert layer["draw"]["name"] == "uniform"
    assert layer["certificate"] == pytest.approx(4 * (layer["norm_a"] ** 2 + 256))  # |B|^2 is 64 x 4
    assert run("audit", folder, "--limit", report["certificate"] * 1.01).exit_code == 0
    assert run("audit", folder, "--limit", report["certificate"] * 0.99).exit_code == 1


WRONG = {
    "no command": ("", None),
    "unknown command": ("prune x", "No such command"),
    "unknown flag": ("plan --rnk 8", "No such option"),
    "nothing given": ("plan", "--rank and --alpha and --width must be given"),
    "no width": ("plan --rank 8 --alpha 16", "--width must be given. The width is the fan-in"),
    "rank as text": ("plan --rank eight --alpha 16 --width 768", "Input should be a valid integer"),
    "rank 0": ("plan --rank 0 --alpha 16 --width 768", "rank must be at least 1"),
    "rank above width": ("plan --rank 800 --alpha 16 --width 768", "rank must be at most the width 768"),
    "alpha 0": ("plan --rank 8 --alpha 0 --width 768", "alpha must be finite and above 0"),
    "alpha NaN": ("plan --rank 8 --alpha nan --width 768", "alpha must be finite"),
    "width 0": ("plan --rank 8 --alpha 16 --width 0", "width must be at least 1"),
    "an unknown draw": ("plan --rank 8 --alpha 16 --width 768 --init pissa", "init must be one of"),
    "tokens alone": ("plan --rank 8 --alpha 16 --width 768 --tokens 9", "--texts and --tokens together"),
    "no texts": ("plan --rank 8 --alpha 16 --width 768 --tokens 9 --texts 0", "must be at least 1; got 0 and 9"),
    "data twice": ("plan --rank 8 --alpha 16 --width 768 --tokens 9 --texts 9 --dimension 3", "or by --dimension"),
    "dimension above width": ("plan --rank 8 --alpha 16 --width 768 --dimension 900", "dimension must be at most"),
    "a configuration and flags": ("plan {good} --rank 4", "not both"),
    "a configuration that is absent": ("plan {tmp}/absent.json --width 9", "No such file"),
    "a configuration that is no JSON": ("plan {tmp}/bad.json --width 9", "must hold JSON"),
    "a draw with B not 0": ("plan {tmp}/pissa.json --width 768", "must be true or 'gaussian'"),
    "an absent adapter": ("audit {tmp}/absent", "does not exist"),
    "an empty folder": ("audit {tmp}/empty", "must hold one .safetensors"),
    "a pickle": ("audit {tmp}/lora.bin", "is a pickle"),
    "a huge header": ("audit {tmp}/huge.safetensors", "announce a header"),
    "no scaling": ("audit {tmp}/bare.safetensors", "Give alpha (--alpha)"),
    "two scalings": ("audit {good} --alpha 4", "leave alpha out"),
    "base without texts": ("audit {good} --base {tmp}", "must be given together"),
    "base that is no folder": ("audit {good} --base {tmp}/absent --texts {tmp}/texts.txt", "must be a folder"),
    "one text": ("audit {good} --base {tmp} --texts {tmp}/one.txt", "at least two lines"),
    "texts that are absent": ("audit {good} --base {tmp} --texts {tmp}/absent.txt", "No such file"),
    "another task": ("audit {classes} --base {tmp} --texts {tmp}/texts.txt", "task_type CAUSAL_LM or SEQ_CLS"),
    "a negative limit": ("audit {good} --limit -1", "--limit must be finite and at least 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path, name):
    good = adapter(tmp_path / "good")
    classes = adapter(tmp_path / "classes", CONFIG | {"task_type": "FEATURE_EXTRACTION"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "pissa.json").write_text(json.dumps(CONFIG | {"init_lora_weights": "pissa"}))
    (tmp_path / "lora.bin").write_bytes(b"\x80\x04")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**60))
    (tmp_path / "bare.safetensors").write_bytes((good / "adapter_model.safetensors").read_bytes())
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    (tmp_path / "one.txt").write_text("one\n\n")
    command, words = WRONG[name]
    out = run(*command.format(tmp=tmp_path, good=good, classes=classes).split())
    assert out.exit_code == 2
    assert not isinstance(out.exception, Exception)
    if words is not None:
        assert words in " ".join(out.stderr.replace("│", " ").split())
        assert "Traceback" not in out.stderr


def test_without_typer_the_extra_is_named():
    code = "import sys; sys.modules['typer'] = None; import runpy; runpy.run_module('lorantk', run_name='__main__')"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "pip install 'lorantk[cli]'" in out.stderr


def test_without_safetensors_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    out = run("audit", adapter(tmp_path / "a"))
    assert out.exit_code == 2
    assert "needs the extra" in out.stderr
