"""The digits: drawn without replacement, by an explicit seed, of one norm. Recorded tables: whole, found by name."""

import pytest
import torch

from benchmarks.report import benchmark
from evidence import artifacts
from experiments.data import digits, recorded


def test_digits_are_normalised_distinct_and_reproducible():
    x, y = digits(300, seed=1)
    assert x.shape == (300, 64)
    assert x.dtype == torch.float64
    assert y.dtype == torch.int64
    assert torch.allclose(x.norm(dim=1), torch.tensor(8.0, dtype=torch.float64))
    assert set(y.tolist()) == set(range(10))
    assert len({tuple(row) for row in x.tolist()}) == 300
    assert torch.equal(x, digits(300, seed=1)[0])
    assert not torch.equal(x, digits(300, seed=2)[0])


@pytest.mark.parametrize(("n", "message"), [(0, "n must be at least 1"), (1798, "n must be at most 1797")])
def test_bad_count_is_named(n, message):
    with pytest.raises(ValueError, match=message):
        digits(n)


def test_the_published_numbers_are_whole():
    figures, tables, floors = (recorded(f"published/{name}") for name in ("figures", "tables", "floors"))
    assert len(figures) == 1728
    assert len(tables) == 26
    assert figures["mean"].between(0, 1).all()
    assert (figures["std"] >= 0).all()
    assert not figures.duplicated(
        ["experiment", "task", "method", "poison_rate", "rank", "variance_times_n", "metric"]
    ).any()
    assert set(floors.task) == set(figures.task)


def test_recorded_tables_and_benchmarks_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "SOURCE_TREE", tmp_path)
    for file, content in (("experiments/results/toy.csv", "a\n0.1\n"), ("benchmarks/results/toy.json", '{"a": 1}')):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(content)
    assert recorded("results/toy")["a"].tolist() == [0.1]
    assert benchmark("toy") == {"a": 1}
    with pytest.raises(FileNotFoundError, match=r"among \['results/toy'\].*got 'toys'"):
        recorded("toys")
