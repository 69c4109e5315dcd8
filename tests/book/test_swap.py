"""A directory takes another's place, and at no moment is there none."""

import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book"))

import swap
from swap import recover, swap_in


def make(folder, text):
    folder.mkdir()
    (folder / "page").write_text(text)
    return folder


def test_readers_find_the_old_one_or_the_new_one_at_any_moment(tmp_path):
    target, seen, done = make(tmp_path / "html", "0"), set(), threading.Event()
    missing = []

    def read():
        while not done.is_set():
            handle = os.open(tmp_path, os.O_RDONLY)  # the name is looked up anew each time
            try:
                os.stat("html", dir_fd=handle)
                seen.add(True)
            except FileNotFoundError:
                missing.append(True)
            finally:
                os.close(handle)

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 300):
        swap_in(make(tmp_path / "fresh", str(i)), target)
    done.set()
    reader.join()
    assert seen
    assert not missing
    assert (target / "page").read_text() == "299"
    assert [p.name for p in tmp_path.iterdir()] == ["html"]


@pytest.mark.parametrize("rename", [0, 1, 2])
def test_without_an_exchange_a_kill_between_the_renames_is_made_good(tmp_path, monkeypatch, rename):
    monkeypatch.setattr(swap, "_exchange", lambda *_: False)
    target, fresh = make(tmp_path / "html", "old"), make(tmp_path / "fresh", "new")
    original, count = type(target).rename, []

    def killed(path, other):
        if len(count) == rename:
            raise KeyboardInterrupt
        count.append(path)
        return original(path, other)

    monkeypatch.setattr(type(target), "rename", killed)
    if rename < 2:
        with pytest.raises(KeyboardInterrupt):
            swap_in(fresh, target)
    else:
        swap_in(fresh, target)
    monkeypatch.undo()
    recover(target)
    assert (target / "page").read_text() == ("new" if rename == 2 else "old")


def test_a_first_directory_just_takes_its_place(tmp_path):
    swap_in(make(tmp_path / "fresh", "new"), tmp_path / "html")
    assert (tmp_path / "html" / "page").read_text() == "new"
