"""Own data in the files of torch and Arrow, written by these libraries."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from engines import library, real
from store_files import everything, npy, numbers, of, one_line, rows

from refgba.data import archives, pack
from refgba.data.activations import open_activations, reopen
from refgba.data.store import DTYPES, open_store
from refgba.data.survey import survey

NESTED = rows(24).reshape(6, 4, 5)  # (batch, position, d)
FLAT = NESTED.reshape(24, 5)

# ---- torch -----------------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pt_file_is_read_where_it_lies(tmp_path, dtype):
    torch, path = library("torch"), tmp_path / "x.pt"
    torch.save(torch.tensor(NESTED).to(getattr(torch, dtype)), path)
    opened = open_store(path)
    assert (opened.dtype, opened.about) == (dtype, {"arrays": [{"file": "x.pt", "shape": [6, 4, 5]}]})
    np.testing.assert_array_equal(everything(opened), of(FLAT, dtype))
    packed = pack.pack([path], tmp_path / "s", format="safetensors")
    np.testing.assert_array_equal(numbers(everything(packed), dtype), numbers(of(FLAT, dtype), dtype))
    assert packed.about == opened.about


@real
def test_a_pt_file_trains_and_is_opened_again_as_a_run_opens_it(tmp_path):
    torch, path = library("torch"), tmp_path / "x.pt"
    torch.save(torch.tensor(NESTED), path)
    data, found = survey(open_activations(path))
    assert found.rows == 24
    again = reopen(data.record(), data.dropped, data.crc)
    np.testing.assert_array_equal(again.stored(0), FLAT)


@real
@pytest.mark.parametrize("suffix", archives.TORCH)
@pytest.mark.parametrize("name", ["acts", "more.0", "more.1.deep", "view", "parameter"])
def test_the_flag_takes_one_tensor_of_a_pt_file(tmp_path, suffix, name):
    torch, path = library("torch"), tmp_path / f"x{suffix}"
    x = torch.tensor(FLAT)
    content = {
        "acts": torch.tensor(NESTED),
        "tokens": torch.arange(24),
        "more": [x.clone(), {"deep": x.clone()}],
        "view": torch.cat([torch.zeros(2, 5), x, x])[2:26],
        "parameter": torch.nn.Parameter(x.clone()),
    }
    torch.save(content, path)
    said = "holds 6 tensors, and none named 'activations': acts torch.float32 (6, 4, 5), tokens torch.int64 (24,)"
    one_line(lambda: open_store(path), path, said, f"`refgba data pack {path} --tensor NAME -o x-store` takes one")
    np.testing.assert_array_equal(everything(pack.pack([path], tmp_path / "s", tensor=name)), FLAT)


@real
def test_of_a_pt_file_the_numbers_are_not_loaded(tmp_path):
    torch, path = library("torch"), tmp_path / "x.pt"
    torch.save({"activations": torch.zeros(2**19, 64), "other": torch.zeros(3)}, path)  # 128 MiB
    open_store(path)
    before = resident()
    opened = open_store(path)
    assert (len(opened), opened.d) == (2**19, 64)
    assert resident() < before + 2**24


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


REFUSED = {
    "integers": (lambda torch: torch.ones(3, 4, dtype=torch.int64), "dtype is torch.int64", "x.to(torch.float32)"),
    "1-D": (lambda torch: torch.ones(4), "this one is 1-D (4,)"),
    "4-D": (lambda torch: torch.ones(2, 3, 4, 5), "this one is 4-D (2, 3, 4, 5); save x.reshape(-1, x.shape[-1])"),
    "transposed": (lambda torch: torch.ones(3, 4).T, "save x.contiguous()"),
    "sparse": (lambda torch: torch.ones(3, 4).to_sparse(), "save x.to_dense()"),
    "meta": (lambda torch: torch.empty(3, 4, device="meta"), "where its numbers lie is not clear"),
    "module": (lambda torch: torch.nn.Linear(3, 4), "holds more than tensors"),
    "array": (lambda _: FLAT, "holds more than tensors"),
    "nothing": (lambda _: {"a": 1}, "holds no tensor"),
}


@real
@pytest.mark.parametrize("name", REFUSED)
def test_a_pt_file_of_something_else_is_refused(tmp_path, name):
    torch, path = library("torch"), tmp_path / "x.pt"
    make, *said = REFUSED[name]
    torch.save(make(torch), path)
    one_line(lambda: pack.pack([path], tmp_path / "s"), path, *said)
    assert not (tmp_path / "s").exists()


@real
def test_a_pt_file_that_is_old_or_compressed_or_cut_or_of_other_bytes_is_refused(tmp_path):
    torch, path = library("torch"), tmp_path / "x.pt"
    torch.save(torch.ones(3, 4), path, _use_new_zipfile_serialization=False)
    one_line(lambda: open_store(path), path, "since torch 1.6")
    torch.jit.script(torch.nn.Linear(3, 4)).save(str(path))
    one_line(lambda: open_store(path), path, "torch.save the tensor alone")
    torch.save(torch.ones(3, 4), path)
    data = path.read_bytes()
    for damaged in (data[:-30], data[:100], data[:4] + data[64:]):
        path.write_bytes(damaged)
        one_line(lambda: open_store(path), path)
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, other if name.endswith("byteorder") else old.read(name))
    one_line(lambda: open_store(path), path, "the other byte order")


@real
def test_a_pt_file_that_would_run_code_does_not(tmp_path):
    torch, path = library("torch"), tmp_path / "x.pt"

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"x": torch.ones(3, 4), "trap": Trap()}, path)
    one_line(lambda: open_store(path), path, "what else a pickle holds may run code")
    assert not (tmp_path / "sprung").exists()


# ---- parquet and Arrow -----------------------------------------------------------------------------------------------


def lists(pa, kind, array=NESTED, number="float32"):
    """A column of lists that holds the rows of `array`."""
    flat, number = array.reshape(-1, array.shape[-1]), getattr(pa, number)()
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), number), flat.shape[1])
    return {
        "list": lambda: pa.array([list(row) for row in flat], pa.list_(number)),
        "large list": lambda: pa.array([list(row) for row in flat], pa.large_list(number)),
        "fixed list": lambda: fixed,
        "lists of lists": lambda: pa.array([[list(row) for row in part] for part in array], pa.list_(pa.list_(number))),
        "fixed lists of lists": lambda: pa.FixedSizeListArray.from_arrays(fixed, array.shape[1]),
    }[kind]()


KINDS = ["list", "large list", "fixed list", "lists of lists", "fixed lists of lists"]


def write(path, columns, size=5):
    """A table in a file, as its name says: rows in groups of `size`."""
    pa = library("pyarrow")
    table = pa.table(columns)
    if path.suffix == ".parquet":
        library("pyarrow.parquet").write_table(table, path, row_group_size=size)
    else:
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=size)
    return path


@real
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_column_of_lists_is_packed(tmp_path, suffix, kind, dtype):
    pa, x = library("pyarrow"), NESTED.astype(dtype)
    column = lists(pa, kind, x, dtype)
    path = write(tmp_path / f"x{suffix}", {"id": list(range(len(column))), "hidden": column})
    packed = pack.pack([path], tmp_path / "s")
    assert packed.dtype == dtype
    np.testing.assert_array_equal(everything(packed), x.reshape(-1, 5))
    if "lists of" in kind:
        (entry,) = packed.about["arrays"]
        known = [6 if suffix == ".parquet" else None, 4 if "fixed" in kind else None, 5]
        assert entry == {"file": path.name, "shape": known}
    if suffix == ".parquet":
        assert pack.count([path]) == 24


@real
def test_documents_of_different_lengths_become_rows_in_order(tmp_path):
    pa = library("pyarrow")
    parts = [FLAT[:0], FLAT[:3], FLAT[3:4], FLAT[4:4], FLAT[4:]]
    column = pa.array([part.tolist() for part in parts], pa.list_(pa.list_(pa.float32())))
    for suffix in (".parquet", ".arrow"):
        path = write(tmp_path / f"x{suffix}", {"hidden": column}, 2)
        np.testing.assert_array_equal(everything(pack.pack([path], tmp_path / suffix[1:])), FLAT)


@real
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_the_flag_takes_one_column(tmp_path, suffix):
    pa = library("pyarrow")
    columns = {"a": lists(pa, "list"), "b": lists(pa, "fixed list", -NESTED), "n": list(range(24))}
    path = write(tmp_path / f"x{suffix}", columns)
    one_line(lambda: pack.pack([path], tmp_path / "s"), "a (list<", "--tensor NAME")
    one_line(lambda: pack.pack([path], tmp_path / "s", tensor="c"), "has no array 'c'", "n (int64)")
    one_line(lambda: pack.pack([path], tmp_path / "s", tensor="n"), "dtype is int64")
    np.testing.assert_array_equal(everything(pack.pack([path], tmp_path / "s", tensor="b")), -FLAT)


def bad(k, value):
    column = FLAT.tolist()
    column[k] = value
    return column


COLUMNS = {
    "ragged": ({"x": bad(13, [1.0])}, "column 'x', row 13 holds 1 numbers, the first row 5"),
    "null": ({"x": bad(13, None)}, "column 'x', row 13 is null"),
    "null inside": ({"x": bad(13, [1.0, None, 1.0, 1.0, 1.0])}, "column 'x', row 13 holds a null"),
    "empty": ({"x": bad(0, [])}, "column 'x', row 0 holds no numbers"),
    "ragged within": (
        {"x": [[[1.0, 2.0]], [[1.0, 2.0], [3.0]]]},
        "column 'x', row 1, position 1 holds 1 numbers, the first row 2",
    ),
    "4-D": ({"x": [[[[1.0, 2.0]]]]}, "has no column of lists of floats"),
    "integers": ({"x": [[1, 2], [3, 4]]}, "has no column of lists of floats; it holds x (list<"),
    "text": ({"x": ["a", "b"]}, "it holds x (string)"),
    "a column per dimension": ({"x0": [1.0], "x1": [2.0]}, "pandas.read_parquet("),
}


@real
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_something_else_are_refused_with_their_row(tmp_path, suffix, name):
    columns, said = COLUMNS[name]
    path = write(tmp_path / f"x{suffix}", columns)
    one_line(lambda: pack.pack([path], tmp_path / "s"), path, said)
    assert not (tmp_path / "s").exists()


@real
@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".feather"])
def test_a_damaged_table_is_one_line(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"x": lists(library("pyarrow"), "list")})
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:20], b"hello", b"\xff" * 100, data[:8] + b"\xff" * 400):
        path.write_bytes(damaged)
        one_line(lambda: pack.pack([path], tmp_path / "s"), path)
        shutil.rmtree(tmp_path / "s", ignore_errors=True)  # of an Arrow stream, a shard may have been whole
    path.write_bytes(b"")
    one_line(lambda: pack.pack([path], tmp_path / "t"), path, "the file is empty")


@real
def test_packing_a_parquet_file_holds_blocks(tmp_path):
    pa = library("pyarrow")
    x = rows(2**17, 64)  # 32 MiB
    path = write(tmp_path / "x.parquet", {"x": lists(pa, "fixed list", x)}, 2**17)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        peak = 0

        def tick(_):
            nonlocal peak
            peak = max(peak, pa.total_allocated_bytes() - before)

        packed = pack.pack([path], tmp_path / "s", tick=tick)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert peak < 2**24
    np.testing.assert_array_equal(everything(packed), x)


# ---- data sets of Hugging Face ---------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_as_save_to_disk_writes_it_is_packed(tmp_path, kind):
    pa, folder = library("pyarrow"), tmp_path / "acts"
    folder.mkdir()
    names = [f"data-{k:05d}-of-00002.arrow" for k in (1, 0)]  # the order of the list counts
    for name, part in zip(names, (NESTED[:4], NESTED[4:]), strict=True):
        write(
            folder / name, {"text": ["a"] * (len(part) * (1 if "lists of" in kind else 4)), "x": lists(pa, kind, part)}
        )
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None, "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    one_line(lambda: open_store(folder), f"`refgba data pack {folder} -o acts-store`")
    np.testing.assert_array_equal(everything(pack.pack([folder], tmp_path / "s")), FLAT)


@real
@pytest.mark.parametrize("suffix", [".pt", ".parquet", ".arrow"])
def test_a_folder_of_these_files_is_packed_in_the_order_of_numbers(tmp_path, suffix):
    folder = tmp_path / "acts"
    folder.mkdir()
    for k, part in enumerate(np.split(FLAT, 12)):
        path = folder / f"part-{k}{suffix}"
        if suffix == ".pt":
            torch = library("torch")
            torch.save(torch.tensor(part), path)
        else:
            write(path, {"x": part.tolist()})
    packed = pack.pack([folder, npy(tmp_path / "x.npy", FLAT.astype("f8"))], tmp_path / "s", dtype="float32")
    np.testing.assert_array_equal(everything(packed), np.tile(FLAT, (2, 1)))
