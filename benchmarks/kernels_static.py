"""What the compiler makes of the GPU kernels, without a GPU: `kernels.py --static`, through NVRTC's own assembler.

Of every kernel, dtype and architecture: registers and shared memory, spills to memory, instructions, and how many
threads of the blocks that the backend launches fit a multiprocessor at once.  No time follows from it; that a change
of the source costs registers, spills or occupancy does.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from importlib import import_module
from typing import Any

ARCHITECTURES = (80, 90, 100)
DTYPES = ("float64", "float32", "bfloat16")
# Of a multiprocessor of all three: registers, which a warp takes 256 of at a time, threads and blocks.
REGISTERS, UNIT, THREADS, BLOCKS = 65536, 256, 2048, 32
INSTRUCTION = 16  # bytes
SMALL = ("narrow", "center", "agree", "choose_digit", "adamw_each", "count_idle", "gather", "leftover")  # 256 threads


def table(ds: tuple[int, ...]) -> list[dict[str, Any]]:
    """A row per kernel, dtype, architecture and number d of a row's entries, but for kernels that d does not change."""
    nvrtc = import_module("cupy").cuda.nvrtc
    device, baselines = (import_module(f"refgba.backends.{name}") for name in ("cupy_device", "baselines.cupy"))
    source, by_row = baselines.SOURCE.read_text(encoding="utf-8"), [n for n in names(device, baselines) if "rows" in n]
    rows: list[dict[str, Any]] = []
    for architecture in ARCHITECTURES:
        for dtype in DTYPES:
            for d in ds:
                code, options = device.compilation(dtype, d)
                log, cubin = compiled(nvrtc, code + source, (*options, f"-arch=sm_{architecture}"))
                sizes, found = code_sizes(cubin), dict(figures(log))
                for name in names(device, baselines):
                    if name not in by_row and d != ds[0]:
                        continue
                    row = {"kernel": name, "dtype": dtype, "sm": architecture} | found[name]
                    threads = block(device, name, d, dtype)
                    row |= {"d": d} if name in by_row else {}
                    row |= {"instructions": sizes[name] // INSTRUCTION, "threads": threads}
                    rows.append(row | {"resident": resident(row["registers"], threads)})
    return rows


def names(device: Any, baselines: Any) -> tuple[str, ...]:
    """All kernels: GBA's, and those that the baselines have besides."""
    return (*device.KERNELS, *baselines.OWN)


def compiled(nvrtc: Any, code: str, options: tuple[str, ...]) -> tuple[str, bytes]:
    """The log of the assembler, and the binary, compiled as CuPy does it."""
    program = nvrtc.createProgram(code, "cupy_kernels.cu", (), ())
    try:
        as_cupy_adds = ("-ftz=true", "--device-as-default-execution-space")
        nvrtc.compileProgram(program, (*options, *as_cupy_adds, "--ptxas-options=-v"))
        return nvrtc.getProgramLog(program), nvrtc.getCUBIN(program)
    finally:
        nvrtc.destroyProgram(program)


def figures(log: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Of every kernel its name, and what the assembler says of it."""
    for part in re.split("Compiling entry function ", log)[1:]:
        stack, stores, loads, registers = (
            int(re.findall(rf"(\d+) {what}", part)[0])
            for what in ("bytes stack frame", "bytes spill stores", "bytes spill loads", "registers")
        )
        shared = re.search(r"(\d+) bytes smem", part)
        name = part.partition("'")[2].partition("'")[0]
        yield name, {
            "registers": registers, "spilled": stores + loads, "stack": stack, "shared": int(shared[1]) if shared else 0
        }  # fmt: skip


def code_sizes(cubin: bytes) -> dict[str, int]:
    """Bytes of instructions of every kernel: the sections .text.NAME of the ELF file, what fills them up included."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)  # where the headers of the sections begin
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(count)]
    at = headers[names][4]
    named = {cubin[at + h[0] : cubin.index(b"\0", at + h[0])].decode(): h[5] for h in headers}
    return {name.removeprefix(".text."): n for name, n in named.items() if name.startswith(".text.")}


def block(device: Any, name: str, d: int, dtype: str) -> int:
    """Threads of a block, as the backend launches the kernel."""
    if "rows" in name:
        return int(device.row_shape(d, 8 if dtype == "float64" else 4)[1])
    if name in device.BLOCKS:
        return int(math.prod(device.BLOCKS[name]))
    return 256 if name in SMALL else 1024


def resident(registers: int, threads: int) -> int:
    """How many threads a multiprocessor has at once, as far as registers and the number of blocks decide it."""
    warps = threads // 32
    a_warp = -(-registers * 32 // UNIT) * UNIT
    return min(REGISTERS // a_warp // warps, THREADS // threads, BLOCKS) * threads


def report() -> dict[str, Any]:
    """The rows, and what they depend on: the compiler, and the kernels with which a row is longer than one piece."""
    nvrtc = import_module("cupy").cuda.nvrtc
    return {"nvrtc": ".".join(map(str, nvrtc.getVersion())), "rows": table((1536, 4096))}


def page(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    keys = (
        "kernel", "d", "dtype", "sm", "registers", "spilled", "stack", "shared", "instructions", "threads", "resident",
    )  # fmt: skip
    heads = {"spilled": "spilled bytes", "stack": "stack bytes", "shared": "shared bytes"}
    heads |= {"threads": "threads per block", "resident": "threads at once"}
    lines = [[heads.get(key, key) for key in keys], ["---"] * len(keys)]
    lines += [[str(row.get(key, "")) for key in keys] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
