"""Own data, as it comes: each form is read or packed, and each refusal says how to get there.

Forms that need torch or pyarrow are in test_sources_libraries.py.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from commands import assert_one_line
from store_files import everything, npy, one_line, rows, safetensors, written

from refgba.data import activations, archives, pack
from refgba.data.store import META, open_store

NESTED = rows(24).reshape(6, 4, 5)  # (batch, position, d)
FLAT = NESTED.reshape(24, 5)


def npz(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


# ---- (batch, position, d) --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [
    lambda folder: npy(folder / "x.npy", NESTED),
    lambda folder: npy(folder / "x.npy", NESTED.astype(">f4")),
    lambda folder: npz(folder / "x.npz", x=NESTED),
    lambda folder: safetensors(folder / "x.safetensors", NESTED),
], ids=["npy", "big-endian npy", "npz", "safetensors"])  # fmt: skip
def test_batches_of_positions_are_rows_in_order_and_a_store_of_them_says_so(tmp_path, write):
    path = write(tmp_path)
    arrays = [{"file": path.name, "shape": [6, 4, 5]}]
    opened = open_store(path)
    np.testing.assert_array_equal(everything(opened), FLAT)
    assert opened.about == {"arrays": arrays}
    packed = pack.pack([path], tmp_path / "s", rows_per_shard=7)
    np.testing.assert_array_equal(everything(packed), FLAT)
    assert json.loads((tmp_path / "s" / META).read_text())["arrays"] == arrays


def test_a_store_of_several_arrays_lists_each_and_keeps_the_list_when_it_is_packed_again(tmp_path):
    paths = [npy(tmp_path / "a.npy", NESTED), npy(tmp_path / "b.npy", FLAT), npy(tmp_path / "c.npy", NESTED[:2])]
    arrays = [["a.npy", [6, 4, 5]], ["b.npy", [24, 5]], ["c.npy", [2, 4, 5]]]
    packed = pack.pack(paths, tmp_path / "s")
    assert [[entry["file"], entry["shape"]] for entry in packed.about["arrays"]] == arrays
    again = pack.pack([packed.path, paths[2]], tmp_path / "t")
    assert [[entry["file"], entry["shape"]] for entry in again.about["arrays"]] == [*arrays, arrays[2]]
    assert "arrays" not in pack.pack([paths[1], paths[1]], tmp_path / "u").about


# ---- .npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
def test_an_npz_file_is_read_where_it_lies_and_packed_when_it_is_compressed(tmp_path, dtype):
    x = rows(5000).astype(dtype)
    plain, small = npz(tmp_path / "x.npz", x=x), npz(tmp_path / "small.npz", compressed=True, x=x)
    np.testing.assert_array_equal(everything(open_store(plain)), x)
    one_line(lambda: open_store(small), "x is compressed", f"`refgba data pack {small} -o small-store`")
    for path in (plain, small):
        packed = pack.pack([path], tmp_path / path.stem)
        assert packed.dtype == x.dtype.name
        np.testing.assert_array_equal(everything(packed), x)
    assert pack.count([plain, small]) == 10000


def test_of_several_arrays_the_message_names_each_and_the_flag_takes_one(tmp_path):
    path = npz(tmp_path / "my x.npz", hidden=FLAT, other=NESTED, tokens=np.arange(3))
    said = "holds 3 tensors, and none named 'activations': hidden float32 (24, 5), other float32 (6, 4, 5), tokens"
    for call in (lambda: open_store(path), lambda: pack.pack([path], tmp_path / "s")):
        one_line(call, path, said, f"`refgba data pack '{path}' --tensor NAME -o 'my x-store'` takes one")
    np.testing.assert_array_equal(everything(pack.pack([path], tmp_path / "s", tensor="other")), FLAT)
    one_line(lambda: pack.pack([path], tmp_path / "t", tensor="x"), "has no array 'x'; it holds hidden float32")
    one_line(lambda: pack.pack([path], tmp_path / "t", tensor="tokens"), "tokens: dtype is int64", "astype('float32')")
    np.testing.assert_array_equal(everything(open_store(npz(path, activations=FLAT, other=NESTED))), FLAT)


def test_the_flag_takes_one_tensor_of_a_safetensors_file_and_nothing_where_there_is_one_array(tmp_path):
    path = safetensors(tmp_path / "x.safetensors", FLAT, "a", b=NESTED)
    one_line(lambda: open_store(path), "a F32 [24, 5], b F32 [6, 4, 5]", "--tensor NAME")
    np.testing.assert_array_equal(everything(pack.pack([path], tmp_path / "s", tensor="b")), FLAT)
    one_line(lambda: open_store(npy(tmp_path / "x.npy", FLAT), tensor="a"), "holds one array")
    one_line(lambda: open_store(tmp_path / "s", tensor="a"), "its shards hold one array each")


def member(**said):
    """A .npz file with one array of 24 rows, whose .npy header says something else."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (24, 5)} | said
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, header)
    return data.getvalue() + FLAT.tobytes()


def archive(path, data, compression=zipfile.ZIP_STORED, name="x.npy"):
    with zipfile.ZipFile(path, "w", compression) as opened:
        opened.writestr(name, data)
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (member(shape=(2**60, 5)), "has not the size of its shape"),
        (member(shape=(2**40,) * 5), "has not the size of its shape"),
        (member(shape=(23, 5)), "has not the size of its shape"),
        (member(shape=(120,)), "this one is 1-D (120,)"),
        (member(shape=(2, 3, 4, 5)), "this one is 4-D (2, 3, 4, 5); save x.reshape(-1, x.shape[-1])"),
        (member(fortran_order=True), "column by column"),
        (member(descr="<i4"), "dtype is int32"),
        (member(descr="|O"), "dtype is object"),
        (member(descr="|V2"), "bfloat16"),
        (b"hello", "not a .npy file"),
        (pickle.dumps(FLAT), "not a .npy file"),
    ],
)
def test_an_npz_file_that_lies_or_holds_something_else_is_refused(tmp_path, data, complaint, compression):
    path = archive(tmp_path / "x.npz", data, compression)
    tracemalloc.start()
    try:
        one_line(lambda: pack.pack([path], tmp_path / "s"), path, complaint)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "s").exists()


def test_an_npz_file_that_is_cut_or_not_one_is_refused(tmp_path):
    path = npz(tmp_path / "x.npz", x=FLAT)
    data = path.read_bytes()
    for damaged in (data[:-30], data[: len(data) // 2], b"hello", b"PK\x03\x04" + bytes(50), data[30:]):
        path.write_bytes(damaged)
        one_line(lambda: open_store(path), path)
    one_line(lambda: open_store(archive(path, b"text", name="readme.txt")), path, "holds 0 tensors")


def test_a_trap_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 2**20)
    path = npz(tmp_path / "x.npz", compressed=True, x=np.zeros((2**18, 5), "f4"))
    one_line(lambda: pack.pack([path], tmp_path / "s"), path, "to 5,243,008 bytes; such files are traps")
    assert not (tmp_path / "s").exists()


def test_packing_a_compressed_array_holds_blocks(tmp_path):
    path = npz(tmp_path / "x.npz", compressed=True, x=np.tile(rows(2**11, 128), (20, 1)))  # 20 MiB
    tracemalloc.start()
    try:
        packed = pack.pack([path], tmp_path / "s")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(packed) == 20 * 2**11
    assert peak < 12 * activations.BLOCK


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_a_folder_of_files_is_packed_in_the_order_of_the_numbers_in_their_names(tmp_path, suffix):
    x, folder = rows(), tmp_path / "acts"
    folder.mkdir()
    for k, part in enumerate(np.split(x, 20)):
        path = folder / f"x_{k}.{suffix}"
        {"npy": npy, "npz": lambda path, x: npz(path, x=x), "safetensors": safetensors}[suffix](path, part)
    for name in ("README.md", ".hidden.npy", ".partial-1.npy", "config.json"):
        (folder / name).write_text("not rows")
    said = f"a folder without meta.json; `refgba data pack {folder} -o acts-store` makes a store of the files in it"
    one_line(lambda: open_store(folder), said)
    np.testing.assert_array_equal(everything(pack.pack([folder], tmp_path / "s")), x)
    assert pack.count([folder]) == 100


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
    folder = tmp_path / "acts"
    folder.mkdir()

    def refused(*said):
        one_line(lambda: pack.pack([folder], tmp_path / "s"), folder, *said)
        assert not (tmp_path / "s").exists()

    refused("holds no files of activations (.arrow")
    (folder / "inside").mkdir()
    refused(f"do you mean `refgba data pack {folder}/inside -o inside-store`?")
    (folder / "x.csv").write_text("1,2")
    refused(folder / "x.csv", ".csv files are not read")
    npy(folder / "a.npy", FLAT)
    npy(folder / "b.npy", FLAT[:, :3])
    refused(folder / "b.npy", "its rows have d = 3, those of", "d = 5")
    npz(folder / "a.npz", x=FLAT)
    refused("holds 2 .npy and 1 .npz files", "name those you mean")
    (folder / "state.json").write_text("{}")
    refused("it lists no _data_files")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    refused("should name .arrow files in the folder")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "gone.arrow"}]}))
    refused("gone.arrow: no such file")
    (folder / "state.json").write_text(json.dumps({"_indices_data_files": [{"filename": "x.arrow"}]}))
    refused("dataset.flatten_indices()")
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    refused(f"`refgba data pack {folder}/train -o train-store`, or `refgba data pack {folder}/test -o test-store`")


def test_stores_and_files_and_folders_merge(tmp_path):
    folder = tmp_path / "acts"
    folder.mkdir()
    npy(folder / "a.npy", NESTED)
    sources = [written(tmp_path / "s", FLAT), folder, npz(tmp_path / "x.npz", x=FLAT)]
    np.testing.assert_array_equal(everything(pack.pack(sources, tmp_path / "t")), np.tile(FLAT, (3, 1)))


# ---- what is not read, and what is missing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("x.csv", "numpy.save('x.npy', pandas.read_csv('{path}').to_numpy('float32'))"),
        ("x.tsv", r"sep='\t'"),
        ("x.TXT", "numpy.loadtxt('{path}')"),
        ("x.json", "json.load"),
        ("x.jsonl", "to_parquet"),
        ("x.h5", "h5py.File('{path}')['NAME'][:]"),
        ("x.hdf5", "h5py.File('{path}')['NAME'][:]"),
        ("x.mat", "scipy.io.loadmat"),
        ("x.zarr", "zarr.open"),
        ("x.pkl", "a pickle runs code"),
        ("x.pickle", "a pickle runs code"),
        ("x.joblib", "a pickle runs code"),
        ("x.bin", "numpy.memmap"),
        ("x.dat", "numpy.memmap"),
        ("x.gguf", "it is a model"),
        ("x.tar", "unpack it"),
        ("x.npy.gz", "unpack it"),
    ],
)
def test_a_file_of_another_kind_is_refused_with_the_way_to_one_that_is_read(tmp_path, name, how):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"x": [1.0]}))
    for call in (lambda: open_store(path), lambda: pack.pack([path], tmp_path / "s")):
        one_line(call, path, "files are not read: ", how.format(path=path))


@pytest.mark.parametrize(
    ("name", "library"),
    [("x.pt", "torch"), ("x.pth", "torch"), ("x.parquet", "pyarrow"), ("x.arrow", "pyarrow"), ("x.feather", "pyarrow")],
)
def test_a_library_that_is_missing_is_told_before_the_work(tmp_path, monkeypatch, name, library):
    monkeypatch.setitem(sys.modules, library, None)
    path = archive(tmp_path / name, b"x")
    said = f"{library}, which is not installed: pip install {library}"
    one_line(lambda: pack.pack([npy(tmp_path / "a.npy", FLAT), path], tmp_path / "s"), path, said)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.feather"])
def test_what_has_to_be_decoded_is_trained_on_once_it_is_packed(tmp_path, name):
    path = archive(tmp_path / name, b"x")
    one_line(lambda: open_store(path), path, f"`refgba data pack {path} -o x-store` makes a store of it")


def test_a_pickle_under_the_name_of_a_pt_file_is_not_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "x.pt"
    path.write_bytes(pickle.dumps(Trap()))
    one_line(lambda: open_store(path), path, "not a .pt file as torch.save has written them since torch 1.6")
    path.write_bytes(b"")
    one_line(lambda: open_store(path), path, "the file is empty")
    assert not (tmp_path / "sprung").exists()


def test_the_commands_that_messages_name_work(cli, tmp_path):
    npz(tmp_path / "x.npz", compressed=True, hidden=rows(600).reshape(-1, 4, 5), other=FLAT)
    assert_one_line(cli("train", "x.npz", "-o", "run"), "`refgba data pack x.npz --tensor NAME -o x-store` takes one")
    result = cli("data", "pack", "x.npz", "--tensor", "hidden", "-o", "x-store", "--layer", "3")
    assert result.exit_code == 0, result.output
    assert "Wrote x-store: 600 rows of d = 5 in float32, 1 shards" in result.output
    assert 'arrays: [{"file": "x.npz", "shape": [150, 4, 5]}]' in cli("data", "info", "x-store").output
    trained = cli("train", "x-store", "-o", "run", "--steps", "4", "--width", "8", "--batch", "16", "--groups", "2")
    assert trained.exit_code == 0, trained.output
