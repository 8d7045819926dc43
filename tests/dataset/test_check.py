"""One pass that finds everything."""

import json
import time
from pathlib import Path

from mlx_finetune.dataset.check import DataReport, check_files
from mlx_finetune.dataset.sources.locate import locate

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def check(folder: Path, name: str, **options: object) -> DataReport:
    return check_files([locate(name, base=folder)], **options)  # pyright: ignore[reportArgumentType]


def jsonl(path: Path, *rows: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def listed(report: DataReport) -> list[str]:
    return [f"{problem.where}: {problem.message}" for problem in (*report.errors, *report.warnings)]


def test_errors_and_warnings_of_a_file_come_together(tmp_path: Path) -> None:
    jsonl(
        tmp_path / "a.jsonl",
        {"messages": TALK},
        "{bad",
        {"messages": []},
        {"messages": TALK[:1]},
        {"text": "other"},
        {"messages": TALK},
        {"messages": [{"role": "narrator", "content": "x"}]},
    )
    report = check(tmp_path, "a.jsonl")
    assert listed(report) == [
        "a.jsonl:2: not JSON: expecting property name enclosed in double quotes (column 2)",
        "a.jsonl:3: `messages` is empty",
        'a.jsonl:7: `messages` turn 1 has the unknown role "narrator"',
        "a.jsonl:5: rows of two kinds in one file: 1 of 6 are text (`text`), the rest messages; lines 5",
        "a.jsonl:4: there is no assistant turn",
        'a.jsonl:6: the row repeats "a.jsonl:1"',
    ]
    assert (report.num_errors, report.num_warnings, report.num_duplicates) == (4, 2, 1)
    assert report.rows == {"train": 4}
    assert report.files[0].format == "messages"
    assert dict(report.roles) == {"user": 3, "assistant": 2}
    assert dict(report.turns) == {1: 1, 2: 2}


def test_rows_of_two_splits_are_leaks_and_of_one_split_repeats(tmp_path: Path) -> None:
    jsonl(tmp_path / "d" / "train.jsonl", {"text": "a"}, {"text": "b"}, {"text": "a "})
    jsonl(tmp_path / "d" / "valid.jsonl", {"text": "c"}, {"text": "b"})
    report = check(tmp_path, "d")
    assert (report.num_duplicates, report.num_leaks) == (1, 1)
    assert listed(report) == [
        'd/valid.jsonl:2: the valid row stands in train too, at "d/train.jsonl:2"',
        'd/train.jsonl:3: the row repeats "d/train.jsonl:1"',
    ]
    assert report.rows == {"train": 3, "valid": 2}


def test_many_repeats_are_counted_and_the_first_ones_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", *({"text": f"row {number % 10}"} for number in range(1000)))
    report = check(tmp_path, "a.jsonl")
    assert (report.num_duplicates, report.num_warnings) == (990, 990)
    assert [problem.where for problem in report.warnings] == [f"a.jsonl:{line}" for line in range(11, 16)]
    assert report.warnings[-1].message == 'the row repeats "a.jsonl:5" (and 985 more like it)'


def test_a_byte_order_mark_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\n')
    assert listed(check(tmp_path, "a.jsonl")) == ["a.jsonl:1: the file begins with a byte-order mark"]


def test_keys_in_rows_are_named_and_never_shown(tmp_path: Path) -> None:
    key = "hf_" + "Q7z" * 12
    jsonl(tmp_path / "a.jsonl", {"text": f"use {key}"}, {"text": 1, "note": key}, {"text": [key]})
    report = check(tmp_path, "a.jsonl")
    assert "a.jsonl:1: there may be an API key or password in this row (not shown)" in listed(report)
    assert key not in " ".join(listed(report))


def test_formats_of_later_tasks_are_fine_alone_and_refused_for_a_task(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"prompt": "q", "chosen": "a", "rejected": "a"})
    assert listed(check(tmp_path, "a.jsonl")) == ["a.jsonl:1: the chosen and the rejected answer are the same"]
    refused = check(tmp_path, "a.jsonl", task="sft")
    assert refused.num_errors == 1
    assert refused.errors[0].message.startswith("the rows are preference pairs (chosen and rejected)")


def test_lengths_are_characters_of_the_content(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {"messages": TALK}, {"messages": [*TALK, *TALK]})
    lengths = check(tmp_path, "a.jsonl").lengths
    assert (lengths.unit, lengths.shortest, lengths.longest, lengths.total) == ("characters", 2, 4, 6)


def test_a_missing_file_is_an_error_in_the_report(tmp_path: Path) -> None:
    report = check(tmp_path, "gone.jsonl")
    assert listed(report) == ["gone.jsonl: no such file"]
    assert report.num_rows == 0


def test_a_row_takes_far_less_than_a_millisecond(tmp_path: Path) -> None:
    # The promise is 20,000 rows a second (benchmarks/data_check_speed.py); a sixth of that holds on a busy machine.
    talk = [{"role": role, "content": f"words of no meaning {role} " * 7} for role in ("system", "user", "assistant")]
    jsonl(tmp_path / "a.jsonl", *({"messages": [*talk, {"role": "user", "content": str(n)}]} for n in range(5000)))
    start = time.process_time()
    assert check(tmp_path, "a.jsonl").num_rows == 5000
    assert time.process_time() - start < 1.5


def test_rows_of_one_label_are_refused_as_a_training_does(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,pos\ngood,pos\n")
    assert listed(check(tmp_path, "a.csv")) == []
    report = check(tmp_path, "a.csv", task="classify")
    assert report.num_errors == 1
    assert 'every training row has the label "pos"' in report.errors[0].message
    folder = tmp_path / "data"
    folder.mkdir()
    for name, label in (("train", "pos"), ("valid", "neg")):
        (folder / f"{name}.csv").write_text(f"text,label\nfine,{label}\n")
    assert check(tmp_path, "data", task="classify").num_errors == 1, "another label in validation rows is not learned"


def test_labels_that_look_like_slips_are_warned_of(tmp_path: Path) -> None:
    labels = (("a", "Pos "), ("b", "pos "), ("c", "pos"), ("d", "neg"), ("a  ", "neg"), ("d", "neg"))
    jsonl(tmp_path / "a.jsonl", *({"text": text, "label": label} for text, label in labels))
    report = check(tmp_path, "a.jsonl", task="classify")
    assert report.labels == {"neg": 3, "Pos ": 1, "pos ": 1, "pos": 1}
    assert listed(report) == [
        'a.jsonl: the labels "Pos ", "pos" and "pos " differ in case or spaces only, and are classes apart',
        'a.jsonl:5: the text stands at "a.jsonl:1" with another label',
        'a.jsonl:6: the row repeats "a.jsonl:4"',
    ]


def test_decimal_numbers_are_no_classes_and_whole_ones_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,1.5\ngood,2\nbad,-0.5\n")
    (message,) = listed(check(tmp_path, "a.csv"))
    assert message == "a.csv: the labels are decimal numbers, and each of the 3 is a class of its own"
    (tmp_path / "b.csv").write_text("text,label\nfine,1\ngood,2\nbad,-5\n")
    assert listed(check(tmp_path, "b.csv")) == []
