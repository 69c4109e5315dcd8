"""Files appear whole or not at all."""

import os

import pytest

from evidence.artifacts import results_directory, write_atomically


def test_a_failed_rename_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    target = tmp_path / "numbers.csv"
    write_atomically(target, "old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, b"new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("numbers.csv", "old")]


def test_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORANTK_RESULTS", raising=False)
    assert results_directory("claims").resolve() == tmp_path / "results" / "claims"
    monkeypatch.setenv("LORANTK_RESULTS", str(tmp_path / "elsewhere"))
    assert results_directory("figures") == tmp_path / "elsewhere" / "figures"
