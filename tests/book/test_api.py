"""The pages about the code: their worked examples run, what they name is there, and all that is public is named."""

import importlib
import re
from pathlib import Path

import pytest
import torch

import lorantk

BOOK = Path(__file__).resolve().parents[2] / "book"
PAGE, CODE = ((BOOK / f"{name}.md").read_text() for name in ("api", "code"))


def test_the_tasks_run_in_their_order():
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 9
    names = {}
    exec("".join(examples), names)
    assert names["kernel"].shape == (16, 16)
    assert names["kernel_of_tokens"].shape == (6, 2, 6, 2)
    assert names["largest"][0] == pytest.approx(torch.linalg.eigvalsh(names["on_disk"].reshape(48, 48))[-1].item())
    torch.testing.assert_close(names["lora_plus"], 16 * names["kernel"])  # at B = 0 only B has a gradient
    assert len(names["share"]) == 3
    assert all(value > 0 for value in names["share"].values())
    assert 0 < names["moved"] < 1
    assert 0 <= names["low"] < names["high"]
    assert set(names["certificates"]) == {"2"}


def test_every_name_on_the_pages_is_there_and_every_public_one_on_the_first():
    def names_on(text):
        return re.findall(r"automodule:: (\S+)\n   :members: (.*)", text)

    named = names_on(PAGE + CODE)
    missing = [
        (m, name) for m, names in named for name in names.split(", ") if not hasattr(importlib.import_module(m), name)
    ]
    assert names_on(PAGE)
    assert names_on(CODE)
    assert missing == []
    assert set(lorantk.__all__) <= {name for _, names in names_on(PAGE) for name in names.split(", ")}
