"""Names that anyone may have chosen, as commands print them of traces, dumps, stores and labels: one line, escaped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import assert_one_line, last_json
from safetensors.numpy import load_file, save_file

from refgba.data import pack
from refgba.errors import InputError
from refgba.report import read_labels

BEFORE = Path(__file__).parent / "before"
ODD = pytest.mark.parametrize("odd", ["a\nb", "a\r\x1b[31mb", "\x07", "\u2028", "\x85x", "\u202e"])


def controls(text):
    """What is left of a text that would control a terminal, or end a line too early."""
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.fixture
def dump(tmp_path):
    """The folders of a trace and of a dump that agrees with it."""
    for folder in ("trace", "candidate"):
        shutil.copytree(BEFORE / folder, tmp_path / folder)
    return tmp_path / "candidate"


@ODD
@pytest.mark.parametrize("name", ["1/{}", "{}/dW", "{}", "1/dW{}"])
def test_the_name_of_an_array(cli, dump, odd, name):
    arrays = load_file(dump / "arrays.safetensors")
    save_file(arrays | {name.format(odd): np.zeros(3)}, dump / "arrays.safetensors")
    result = cli("oracle", "check", "trace", "candidate")
    assert_one_line(result, "Error: candidate")
    assert not controls(result.stderr)


@ODD
@pytest.mark.parametrize("field", ["starts", "config", "d", "key"])
def test_a_field_of_an_index(cli, dump, odd, field):
    index = json.loads((dump / "index.json").read_text())
    index |= {"config": {odd: odd}} if field == "key" else {field: {"width": odd} if field == "config" else odd}
    (dump / "index.json").write_text(json.dumps(index))
    result = cli("oracle", "check", "trace", "candidate")
    assert_one_line(result, "Error: candidate/index.json: ")
    assert not controls(result.stderr)


@ODD
def test_the_name_of_a_folder_in_a_report_of_several_lines(cli, dump, odd):
    arrays = load_file(dump / "arrays.safetensors")
    name = next(name for name in arrays if name.endswith("/dW"))
    save_file(arrays | {name: 2 * arrays[name]}, dump / "arrays.safetensors")
    dump.rename(dump.with_name(odd))
    result = cli("oracle", "check", "trace", odd)
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith(f"step {name.split('/')[0]}: dW deviates")
    assert not controls(result.output)


@pytest.mark.parametrize("odd", [r"\ud800", r"a\nb\u001b", r"\u202e"])
def test_a_description_of_a_store(cli, tmp_path, odd):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))
    pack.pack([tmp_path / "x.npy"], tmp_path / "store", about={"model": "@"})
    meta = tmp_path / "store" / "meta.json"
    meta.write_text(meta.read_text().replace('"@"', f'"{odd}", "{odd}": ["{odd}"]'))
    for command in (["data", "info", "store"], ["data", "verify", "store"], ["data", "pack", "store", "-o", "again"]):
        result = cli(*command)
        assert result.exit_code == 0, result.output
        assert not controls(result.stdout)
    assert last_json(cli("data", "info", "again", "--json"))["about"] == {
        "model": json.loads(f'"{odd}"'), json.loads(f'"{odd}"'): [json.loads(f'"{odd}"')],
    }  # fmt: skip
    meta.write_text(meta.read_text().replace('"00000.npy"', f'"{odd}.npy"'))
    assert_one_line(cli("data", "info", "store"), "meta.json: shard 0: file should be a name in the folder")


@pytest.mark.parametrize(
    "text", ['{"1": %s}' % ("9" * 5000), '{"%s": "x"}' % ("9" * 5000), r'{"\ud800": "x"}', r'{"1\n": "x"}']
)
def test_labels_that_are_none(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_labels(tmp_path / "labels.json")
    assert str(caught.value).isprintable()


def test_a_label_with_half_a_character_is_a_label(tmp_path):
    (tmp_path / "labels.json").write_text(r'{"1": "\ud800"}')
    assert read_labels(tmp_path / "labels.json") == {1: "\ud800"}
