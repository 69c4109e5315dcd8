"""The worked examples of the page about the package run, and give what they say."""

import importlib
import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "book" / "api.md").read_text()


def test_the_five_tasks_run_in_their_order():
    examples = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 5
    names = {}
    exec("".join(examples), names)
    assert names["kernel"].shape == (16, 16)
    assert len(names["share"]) == 3
    assert all(value > 0 for value in names["share"].values())
    assert 0 < names["moved"] < 1
    assert 0 <= names["low"] < names["high"]
    assert set(names["certificates"]) == {"2"}


def test_every_name_on_the_page_is_there():
    named = re.findall(r"automodule:: (\S+)\n   :members: (.*)", PAGE)
    missing = [
        (m, name) for m, names in named for name in names.split(", ") if not hasattr(importlib.import_module(m), name)
    ]
    assert named
    assert missing == []
