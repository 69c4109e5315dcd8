"""Rows of results that no kill can spoil: torn lines, drivers side by side, the order of arrival."""

import time
from dataclasses import asdict
from multiprocessing import get_context

import pandas as pd
import pytest

from evidence.artifacts import CorruptFile
from experiments.config import Run
from experiments.table import ResultsTable

LORA = {"method": "lora", "rank": 2, "variance": "peft", "scaling": "1"}
METRICS = {"clean_accuracy": 0.9512, "poison_accuracy": float("nan"), "validation_accuracy": 0.1, "seconds": 0.123456}


def row(run, **metrics):
    return {"id": run.id, **asdict(run), **METRICS, **metrics}


@pytest.fixture
def rows():
    return [row(Run("digits", seed=seed, **kind)) for kind in ({}, LORA) for seed in range(3)]


def test_a_table_reads_back_what_went_in(tmp_path, rows):
    table = ResultsTable(tmp_path, "digits")
    assert list(table.read().columns[:3]) == ["id", "task", "attack"]
    assert table.append(rows) == 6
    read = table.read()
    expected = pd.DataFrame(rows).assign(rank=[pd.NA] * 3 + [2] * 3, seconds=0.123).astype({"rank": "Int64"})
    pd.testing.assert_frame_equal(read, expected[read.columns], check_dtype=False)
    only_full = ResultsTable(tmp_path / "full", "digits")
    only_full.append(rows[:3])
    assert (only_full.read().dtypes == read.dtypes).all()


def test_a_line_torn_at_any_byte_is_no_result_and_is_made_good(tmp_path, rows):
    table, rows = ResultsTable(tmp_path, "digits"), rows[2:5]
    table.append(rows)
    whole = table.path.read_bytes()
    for cut in range(len(whole)):
        table.path.write_bytes(whole[:cut])
        finished = whole[:cut].count(b"\n") - 1
        assert list(table.read().id) == [entry["id"] for entry in rows[: max(finished, 0)]]
        assert table.append(rows[-2:]) == 2 - max(0, finished - 1)
        table.append(rows)
        assert sorted(table.path.read_bytes().splitlines()) == sorted(whole.splitlines())
        assert table.path.read_bytes().splitlines()[0] == whole.splitlines()[0]


def test_an_id_never_gets_a_second_row(tmp_path, rows):
    table = ResultsTable(tmp_path, "digits")
    assert table.append(rows[:2] + rows[:2]) == 2
    assert table.append([row(Run("digits", seed=0), clean_accuracy=0.0), rows[3]]) == 1
    assert list(table.read().clean_accuracy) == [0.9512] * 3


@pytest.mark.parametrize("change", [{"task": "spam"}, {"more": 1}])
def test_rows_of_another_shape_are_refused_and_leave_the_table_as_it_was(tmp_path, rows, change):
    table = ResultsTable(tmp_path, "digits")
    table.append(rows[:1])
    before = table.path.read_bytes()
    with pytest.raises(ValueError, match="rows must be of task 'digits' with columns"):
        table.append([rows[1], rows[2] | change])
    assert table.path.read_bytes() == before


class SlowTable(ResultsTable):
    """Sleeps between looking and writing: without a lock another driver gets in between."""

    def ids(self):
        found = super().ids()
        time.sleep(0.005)
        return found


def append_one_by_one(barrier, directory, rows):
    table = SlowTable(directory, "digits")
    barrier.wait()
    for entry in rows:
        table.append([entry])


def test_two_drivers_with_the_same_rows_neither_interleave_nor_double(tmp_path):
    many = [row(Run("digits", seed=seed, **LORA)) for seed in range(100)]
    context = get_context("fork")
    barrier = context.Barrier(2)
    drivers = [context.Process(target=append_one_by_one, args=(barrier, tmp_path, many)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
        assert driver.exitcode == 0
    read = ResultsTable(tmp_path, "digits").read()
    assert sorted(read.seed) == list(range(100))
    assert (read.clean_accuracy == 0.9512).all()


def test_a_tidy_table_does_not_depend_on_the_order_of_arrival(tmp_path, rows):
    tables = [ResultsTable(tmp_path / str(i), "digits") for i in range(2)]
    for table, order in zip(tables, (rows, rows[::-1]), strict=True):
        table.append(order)
        table.tidy()
    assert tables[0].path.read_bytes() == tables[1].path.read_bytes()
    assert list(tables[0].read().seed) == [0, 1, 2, 0, 1, 2]
    empty = ResultsTable(tmp_path, "spam")
    empty.tidy()
    assert not empty.path.exists()


HEAD, FIRST, SECOND = 0, 1, 2


@pytest.mark.parametrize(
    ("damage", "line", "message"),
    [
        (lambda lines: [*lines, lines[FIRST]], 4, "stands in line 2 already"),
        (lambda lines: [lines[HEAD], lines[FIRST].rsplit(",", 2)[0], lines[SECOND]], 2, "values below 16 columns"),
        (lambda lines: [lines[HEAD], lines[FIRST] + ",1", lines[SECOND]], 2, "17 values below 16 columns"),
        (lambda lines: [*lines[:2], "<<<<<<< HEAD", lines[SECOND], "=======", ">>>>>>> side"], 3, "were merged"),
        (lambda lines: [lines[HEAD], "", *lines[1:]], 2, "0 values below"),
        (lambda lines: [lines[HEAD], lines[FIRST][3:], lines[SECOND]], 2, "twelve hexadecimal digits"),
        (lambda lines: [lines[HEAD], lines[FIRST], lines[SECOND].replace("0.9512", "0.95l2")], 3, "must be a number"),
        (lambda lines: [lines[HEAD].replace("seed", "sead"), *lines[1:]], 1, "the header lacks seed"),
        (lambda lines: lines[1:], 1, "the header lacks"),
    ],
)
def test_a_row_that_is_none_is_named_by_file_and_line(tmp_path, rows, damage, line, message):
    table = ResultsTable(tmp_path, "digits")
    table.append(rows[:2])
    damaged = "\n".join(damage(table.path.read_text().splitlines())) + "\n"
    table.path.write_text(damaged)
    for use in (table.ids, table.read, table.tidy, lambda: table.append(rows[2:3])):
        with pytest.raises(CorruptFile, match=message) as caught:
            use()
        assert str(caught.value).startswith(f"{table.path}:{line}: ")
    assert table.path.read_text() == damaged


def test_bytes_that_are_no_text_are_named_by_line(tmp_path, rows):
    table = ResultsTable(tmp_path, "digits")
    table.append(rows[:2])
    whole = table.path.read_bytes()
    table.path.write_bytes(whole[:-4] + b"\xff" + whole[-3:])
    with pytest.raises(CorruptFile, match=r"digits\.csv:3: no text in UTF-8"):
        table.read()
