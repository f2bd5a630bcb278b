"""Reading of raw tables: every error names its file and line."""

import csv
import gzip
import os

import numpy as np
import pytest

from mmoe_jax.data.columns import from_pandas
from mmoe_jax.data.writers import floats_as_csv
from mmoe_jax.errors import UserError
from mmoe_jax.files import write_atomically
from tests.frames import read_frame

COLUMNS = ("age", "job", "income")


def read(tmp_path, text: str):
  path = tmp_path / "rows.csv"
  path.write_text(text)
  return read_frame(str(path), COLUMNS)


def test_values_are_stripped_strings(tmp_path):
  frame = read(tmp_path, "7, Not in universe ,  50000+.\n8, NA, ?\n")
  assert frame.to_numpy().tolist() == [["7", "Not in universe", "50000+."], ["8", "NA", "?"]]
  assert frame.index.tolist() == [1, 2]


def test_values_that_differ_in_spaces_are_one(tmp_path):
  frame = read(tmp_path, "7, Cook ,x\n8,Cook,y\n9, Maid,x \n")
  assert frame["job"].tolist() == ["Cook", "Cook", "Maid"]
  assert frame["job"].nunique() == 2
  assert frame["income"].tolist() == ["x", "y", "x"]


def test_floats_are_bitwise_identical_after_reading(tmp_path):
  rng = np.random.default_rng()
  columns = {
    "a": np.exp(rng.normal(0, 100, 1000)),
    "b, or c": rng.integers(0, 2**64, 1000, np.uint64).view(np.float64),
  }
  columns["b, or c"][~np.isfinite(columns["b, or c"])] = 0.0
  path = tmp_path / "out.csv"
  path.write_text(floats_as_csv(columns))
  with open(path, encoding="utf-8", newline="") as file:
    header, *rows = csv.reader(file)
  assert header == list(columns)
  np.testing.assert_array_equal(np.array(rows, float), np.stack(list(columns.values()), 1))


def test_quotes_are_optional(tmp_path):
  plain = read(tmp_path, "7, Cook, x\n8, Maid, y\n")
  quoted = read(tmp_path, '"7","Cook","x"\n8, "Maid",y\n')
  assert plain.equals(quoted)
  assert read(tmp_path, '7,"Cook, or maid",\n')["job"].tolist() == ["Cook, or maid"]


def test_a_header_may_reorder_and_leave_out_columns(tmp_path):
  frame = read(tmp_path, "job,age\nCook,7\n")
  assert frame["age"].tolist() == ["7"]
  assert list(frame.columns) == ["job", "age"]
  assert frame.index.tolist() == [2]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("1,2,3\n1,2\n", r"rows\.csv, line 2: has 2 columns, must have 3"),
    ("1,2,3\n1,2,3,4\n", r"rows\.csv, line 2: has 4 columns, must have 3"),
    ("1,2,3\n1,2,3,4,5\n", r"rows\.csv: .*line 2"),
    ("1,2,3\n1,2,3,\n", r"rows\.csv, line 2: has 4 columns, must have 3"),
    ("1,2,3,\n4,5,6,\n", r"rows\.csv, line 1: has 4 columns, must have 3"),
    ("1,2,3\n\n1,2,3\n", r"rows\.csv, line 2: has 1 columns, must have 3"),
    ("1,2\n3,4\n", r"rows\.csv, line 1: has 2 columns, must have 3"),
    ('1,2,3\n4,"5,6\n', r"rows\.csv: .*inside string"),
    ("", r"rows\.csv: the file is empty"),
    ("age,jbo,income\n1,2,3\n", r"'jbo', which does not exist; did you mean 'job'"),
    ("age,age,income\n1,2,3\n", r"repeats a column"),
    ("age,job,income\n", r"rows\.csv: no rows"),
  ],
)
def test_faults_name_file_and_line(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read(tmp_path, text)


def test_an_empty_last_value_is_not_a_missing_column(tmp_path):
  assert read(tmp_path, "1,2,\n1,2,3\n")["income"].tolist() == ["", "3"]


def test_gzip_is_read_and_truncated_gzip_is_named(tmp_path):
  path = tmp_path / "rows.csv.gz"
  path.write_bytes(gzip.compress(b"1,2,3\n" * 1000))
  assert len(read_frame(str(path), COLUMNS)) == 1000
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(UserError, match=r"rows\.csv\.gz: not a gzip file, or damaged"):
    read_frame(str(path), COLUMNS)


def test_a_file_that_is_not_text_is_named(tmp_path):
  path = tmp_path / "rows.csv"
  path.write_bytes(bytes(range(128, 256)) * 10)
  with pytest.raises(UserError, match=r"rows\.csv: not a table"):
    read_frame(str(path), COLUMNS)


def test_plain_files_are_read_as_all_others_are(tmp_path):
  rng = np.random.default_rng()
  values = (
    "",
    " ",
    "NA",
    "?",
    "007",
    "7",
    " 7 ",
    "-1.50",
    "Zoë ",
    "a b",
    "nan",
    "None",
    "\t",
    "1e5",
  )
  lines = [",".join(row) for row in rng.choice(values, (500, 3))]
  for header, end in (("", ""), ("job,income,age\n", "\n")):
    text = header + "\n".join(lines) + end
    path = tmp_path / "rows.csv"
    path.write_text(text)
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    plain, other = read_frame(str(path), COLUMNS), read_frame(str(packed), COLUMNS)
    assert plain.index.tolist() == other.index.tolist()
    assert plain.astype(object).equals(other.astype(object))
    assert len(plain) == 500


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
  path = tmp_path / "out.txt"
  write_atomically(str(path), "first")
  with pytest.raises(TypeError):
    write_atomically(str(path), 5)
  assert path.read_text() == "first"
  assert os.listdir(tmp_path) == ["out.txt"]


def test_white_space_around_values_is_no_part_of_them(tmp_path):
  plain = read(tmp_path, "7,\tMale\t, 50000+.\r\n8,  Female , x\n")
  quoted = read(tmp_path, '7," Male ","\t50000+."\n8,"Female",x\n')
  assert plain.to_numpy().tolist() == [["7", "Male", "50000+."], ["8", "Female", "x"]]
  assert quoted.to_numpy().tolist() == plain.to_numpy().tolist()


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("\n1,2,3\n", "line 1: is empty, must have 3 columns"),
    ("  \n1,2,3\n", "line 1: is empty, must have 3 columns"),
    ("", "the file is empty"),
    ('1,2\n3,"' + "x" * 200_000 + '",5\n', "columns"),
    ("1,2,3\n4,5\n", "line 2: has 2 columns, must have 3"),
  ],
)
def test_files_that_are_no_tables_are_named(tmp_path, text, message):
  with pytest.raises(UserError, match=message):
    read(tmp_path, text)


def test_a_long_field_is_read(tmp_path):
  text = "x" * 200_000
  frame = read(tmp_path, f'1,"{text}",3\n2,{text},"4"\n')
  assert list(frame["job"]) == [text, text]


def test_paths_that_are_no_files_are_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for path, message in (
    (str(tmp_path / "pipe"), "must be a file, not a folder, pipe or device"),
    (str(tmp_path), "must be a file"),
    ("/dev/null", "must be a file"),
    ("a\0b", "contains characters"),
    ("a\udcffb", "contains characters"),
  ):
    with pytest.raises(UserError, match=message):
      read_frame(path, COLUMNS)
  with pytest.raises(FileNotFoundError):
    read_frame(str(tmp_path / "none"), COLUMNS)


def test_a_file_that_is_no_gzip_file_is_named(tmp_path):
  path = tmp_path / "rows.csv.gz"
  path.write_text("1,2,3\n")
  with pytest.raises(UserError, match=r"rows\.csv\.gz: not a gzip file"):
    read_frame(str(path), COLUMNS)


@pytest.mark.parametrize("value", ["1e31", "-1", "1e300", "inf"])
def test_numbers_beyond_float32_are_refused(tmp_path, value):
  frame = read(tmp_path, f"1,a,b\n{value},a,b\n")
  with pytest.raises(UserError, match="line 2, column 'age'"):
    from_pandas(frame, "rows.csv").numbers("age", 0.0)
