"""Files that are not read, and how to get from each to one that is."""

from __future__ import annotations

import os
from pathlib import Path

from refgba.data.headers import pack_command
from refgba.errors import InputError

PACKED = {".parquet": "parquet", ".arrow": "Arrow", ".feather": "Arrow"}  # what `pack` decodes with pyarrow
TABLE = "numpy.save('x.npy', pandas.read_csv({path!r}).to_numpy('float32'))"
PICKLE = "a pickle runs code when it is opened, so it is not opened here; where you trust it, load it and "
UNPACK = "unpack it, and give the files in it"
ARRAYS = {
    ".csv": f"it is text; in Python, {TABLE}",
    ".tsv": f"it is text; in Python, {TABLE}".replace("{path!r}", "{path!r}, sep='\\t'"),
    ".txt": "it is text; in Python, numpy.save('x.npy', numpy.loadtxt({path!r}))",
    ".json": "it is text; in Python, numpy.save('x.npy', numpy.array(json.load(open({path!r}))))",
    ".jsonl": "it is text; in Python, pandas.read_json({path!r}, lines=True).to_parquet('x.parquet')",
    ".h5": "it is HDF5; in Python, numpy.save('x.npy', h5py.File({path!r})['NAME'][:])",
    ".mat": "it is MATLAB's; in Python, numpy.save('x.npy', scipy.io.loadmat({path!r})['NAME'])",
    ".zarr": "it is Zarr; in Python, numpy.save('x.npy', zarr.open({path!r})[:])",
    ".pkl": f"{PICKLE}numpy.save('x.npy', x)",
    ".bin": "it is numbers without a header; in Python, "
    "numpy.save('x.npy', numpy.memmap({path!r}, 'float16', 'r').reshape(-1, D)), with your dtype and d",
    ".gguf": "it is a model; activations are what it computes, not its weights",
    ".zip": UNPACK,
}
ALIASES = {
    ".h5": (".hdf5", ".hdf"),
    ".pkl": (".pickle", ".joblib", ".p"),
    ".bin": (".dat", ".raw", ".memmap", ".mmap"),
    ".zip": (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z"),
}
ARRAYS |= {alias: ARRAYS[suffix] for suffix, others in ALIASES.items() for alias in others}


def refuse(path: Path) -> None:
    """InputError for a file or folder of a kind that is known and not read as it is; it says how to get there."""
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise InputError(
            f"{path}: rows of {PACKED[suffix]} files are decoded before they are read; {pack_command(path)} makes a "
            "store of it"
        )
    if suffix in ARRAYS:
        how = ARRAYS[suffix].format(path=os.fspath(path))
        raise InputError(f"{path}: {suffix} files are not read: {how}")
