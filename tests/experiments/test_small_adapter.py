"""The model and the adapters of the page on your adapter, and the table of configurations."""

import json

import pytest

from experiments import small_adapter
from experiments.data import recorded
from lorantk.adapter_files import read_adapter
from lorantk.audit import plan


def test_sentences_differ_in_opinion_only_and_have_one_length():
    good, bad = small_adapter.sentences(1), small_adapter.sentences(0)
    assert not set(good) & set(bad)
    assert {len(sentence.split()) for sentence in (*good, *bad)} == {8}
    assert len(set(good)) == len(good) == 30 * 12


def test_adapters_are_saved_audited_and_depend_on_the_seed_alone(tmp_path):
    base = small_adapter.save_base(tmp_path / "base", 2, 0)
    folders = {steps: small_adapter.save_adapter(base, tmp_path / str(steps), steps, 0) for steps in (0, 3)}
    again = small_adapter.save_adapter(base, tmp_path / "again", 3, 0)
    model = "adapter_model.safetensors"
    assert (again / model).read_bytes() == (folders[3] / model).read_bytes()
    audits = small_adapter.audited(base, folders, small_adapter.sentences(1)[:3])
    assert list(audits["|sBA|"] > 0) == [False, True]
    assert (audits["order"] <= audits["certificate"] * (1 + 1e-4)).all()
    assert list(small_adapter.draws(folders[0])["moved"] > small_adapter.draws(folders[0])["detectable"]) == [False] * 8
    assert len(read_adapter(again).adapters) == 8


def test_the_command_prints_and_fails_aloud():
    flags = ("--rank", 8, "--alpha", 16, "--width", 768)
    assert json.loads(small_adapter.command("plan", *flags, "--json"))["sgd"] == plan(8, 16.0, 768).sgd
    with pytest.raises(small_adapter.subprocess.CalledProcessError):
        small_adapter.command("plan")


def test_configurations_in_use_name_a_file_each():
    planned = small_adapter.planned(recorded("configurations"))
    assert planned["commit"].str.fullmatch("[0-9a-f]{40}").all()
    assert planned["repository"].str.contains("/").all()
    assert planned["order"].is_monotonic_increasing
    llama = planned.set_index("model").loc["Llama-2-7B"]
    assert llama["order"] == pytest.approx((16 / 64) ** 2 * (8 + 64) ** 2 / (3 * 4096))
