"""A harvest that is given again, or into a folder that holds something; and text that is not all UTF-8."""

from __future__ import annotations

import hashlib
import json

import llm_models
import pytest
from commands import assert_one_line, last_json
from engines import library
from llm_models import BLOCKS, SITES, TEXT, llm

from refgba.errors import InputError
from refgba.llm import harvesting, text
from refgba.llm.records import open_harvest
from refgba.llm.shards import Site
from refgba.llm.text import Omissions, TextOptions, pieces

models, corpus = llm_models.models, llm_models.corpus  # fixtures
LATIN = "na\u00efve ".encode("latin-1")


def everything(folder):
    """Every file in a folder, by its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def late(folder, name):
    """A file that begins as text of UTF-8, for longer than anyone looks, and does not go on so."""
    (folder / name).write_bytes(TEXT[0].encode() * 300 + LATIN + TEXT[1].encode())
    return folder / name


def command(model, corpus, *more, kind="gpt2"):
    """To harvest with several shards."""
    flags = ["--text", corpus, "--context", 16, "--batch", 2, "--shard", 100, *more]
    return ["harvest", model, "--site", SITES[kind], *flags, "-o", "store"]


def stopping(after):
    """`harvesting.run`, which is interrupted instead of running once more than so many times."""
    run, left = harvesting.run, iter(range(after))

    def stopped(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run(*arguments)

    return stopped


# ---- what is whole ---------------------------------------------------------------------------------------------------


@llm
@pytest.mark.parametrize("flags", [(), ("--tokens", 150), ("--pack",)])
def test_a_whole_store_is_compared_with_the_text(cli, models, corpus, tmp_path, flags):
    again = command(models("gpt2"), corpus, *flags)
    assert cli(*again).stdout.startswith("Wrote store: ")
    before = everything(tmp_path / "store")
    result = cli(*again)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Already there: store: ")
    assert "store: was there already, whole and of this model and text; nothing was written" in result.stderr
    first = (corpus / "00.txt").read_text()
    (corpus / "00.txt").write_text(first.replace("a", "o"))
    assert_one_line(cli(*again), "store: is whole, and of another text: what --text names has changed since")
    (corpus / "00.txt").write_text(first)
    assert cli(*again).exit_code == 0
    assert everything(tmp_path / "store") == before


@llm
def test_a_text_that_has_grown_or_shrunk_is_another_one_where_it_would_be_read(cli, models, corpus):
    whole, part = command(models("gpt2"), corpus), command(models("gpt2"), corpus, "--tokens", 150)
    part[-1] = "part"
    assert cli(*whole).exit_code == cli(*part).exit_code == 0
    (corpus / "99.txt").write_text(TEXT[5])
    assert_one_line(cli(*whole), "store: is whole, and of another text")
    assert cli(*part).exit_code == 0  # does not get so far
    (corpus / "99.txt").write_text("a")  # one token, which is left out as the first: the same rows
    assert cli(*whole).exit_code == 0
    for name in ("99.txt", "11.txt"):
        (corpus / name).unlink()
    assert_one_line(cli(*whole), "store: is whole, and of another text")


@llm
def test_explore_does_not_go_on_with_a_store_of_another_text(cli, models, corpus):
    for k in range(20):
        (corpus / f"more{k:02d}.txt").write_text(llm_models.text(100 + k, 60), encoding="utf-8")
    flags = ["--text", corpus, "--width", 40, "--steps", 30, "--context", 24, "--tokens", 1500, "-o", "out"]
    explore = ["llm", "explore", models("gpt2"), "--site", SITES["gpt2"], *flags]
    assert cli(*explore).exit_code == 0
    (corpus / "00.txt").write_text(TEXT[3])
    assert_one_line(cli(*explore), "store: is whole, and of another text")


# ---- text that is not UTF-8 ------------------------------------------------------------------------------------------


@llm
@pytest.mark.parametrize("name", ["05a.txt", "99.txt"])
def test_a_file_that_is_not_utf8_is_left_out_and_counted_and_a_stop_changes_nothing(
    cli, models, corpus, tmp_path, monkeypatch, name
):
    assert cli(*command(models("gpt2"), corpus)).exit_code == 0
    (tmp_path / "store").rename(tmp_path / "without")
    late(corpus, name)
    result = cli(*command(models("gpt2"), corpus, "--json"))
    assert last_json(result)["stores"][0]["files_left_out"] == 1
    assert result.stderr.count(f"{name}: not UTF-8, left out") == 1
    metas = [json.loads((tmp_path / store / "meta.json").read_text()) for store in ("without", "store")]
    assert sum(shard.pop("files_left_out", 0) for shard in metas[1]["shards"]) == 1
    assert metas[0] == metas[1]  # all else is as if the file were not there
    for stop in (4, 20):
        parts = [*command(models("gpt2"), corpus)[:-1], f"parts{stop}"]
        with monkeypatch.context() as patch:
            patch.setattr(harvesting, "run", stopping(stop))
            assert cli(*parts).exit_code != 0
        assert cli(*parts).exit_code == 0
        assert everything(tmp_path / f"parts{stop}") == everything(tmp_path / "store")
    again = cli(*command(models("gpt2"), corpus))
    assert again.exit_code == 0
    assert f"{name}: not UTF-8, left out" in again.stderr
    assert "; files that are not UTF-8: 1" in again.stdout


@llm
def test_a_store_that_an_earlier_version_began_goes_on_past_such_a_file(cli, models, corpus, tmp_path, monkeypatch):
    late(corpus, "05a.txt")
    monkeypatch.setattr(harvesting, "MEASURED", 50)  # tokens, which come before it
    with monkeypatch.context() as patch:  # an earlier version ended there
        patch.setattr(text, "is_utf8", lambda _: True)
        assert_one_line(cli(*command(models("gpt2"), corpus)), "05a.txt: not UTF-8 (invalid continuation byte); conv")
    assert not json.loads((tmp_path / "store" / "meta.json").read_text())["complete"]
    assert cli(*command(models("gpt2"), corpus)).exit_code == 0
    open_harvest(tmp_path / "store").verify()


def test_only_what_lies_in_a_folder_is_left_out_and_only_where_someone_is_told(tmp_path):
    file = late(tmp_path, "b.txt")
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    told = []

    def tell(omitted):
        assert omitted.number is None
        told.append(omitted.file)

    found = list(pieces(TextOptions((tmp_path,), left_out=tell)))
    assert found == [(0, "a.txt"), (1, "c.txt")]
    assert told == [file]
    for options in (TextOptions((tmp_path,)), TextOptions((file,), left_out=tell)):
        with pytest.raises(InputError, match=r"b[.]txt: not UTF-8 [(]invalid continuation byte[)]; convert it"):
            list(pieces(options))
    assert told == [file]
    file.write_bytes("naïve".encode()[:-3])  # ends within a character
    (tmp_path / "d.txt").write_bytes(TEXT[0].encode() * 300 + "ï".encode()[:1])
    assert len(list(pieces(TextOptions((tmp_path,), left_out=tell)))) == 2
    assert told == [file, file, tmp_path / "d.txt"]
    file.write_bytes("naïve".encode())  # it is looked at again once it has changed
    (tmp_path / "d.txt").write_bytes(TEXT[0].encode())
    assert len(list(pieces(TextOptions((tmp_path,), left_out=tell)))) == 4


# ---- lines without text ---------------------------------------------------------------------------------------------

BAD = ("{not JSON", '{"other": "a cat"}', '{"text": 3}', '["text"]', "\ud800", '{"text": null}')


def lines(path, bad=(), of=60):
    """A file of JSON lines, with bad ones before each tenth but the first."""
    good = [json.dumps({"text": TEXT[k % len(TEXT)]}) for k in range(of)]
    held = [line for k, line in enumerate(good) for line in ((*bad, line) if k and k % 10 == 0 else (line,))]
    path.write_text("\n".join(held) + "\n", encoding="utf-8", errors="surrogatepass")
    return path


def tables(path, bad=(), of=60):
    """The same as a table."""
    pyarrow = library("pyarrow")
    library("pyarrow.parquet")
    held = [text for k in range(of) for text in ((*bad, TEXT[k % 12]) if k and k % 10 == 0 else (TEXT[k % 12],))]
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(held, pyarrow.string())}), path)
    return path


@llm
@pytest.mark.parametrize(("make", "bad", "name"), [(lines, BAD, "t.jsonl"), (tables, (None,), "t.parquet")])
def test_lines_without_text_are_left_out_and_counted_and_a_stop_changes_nothing(
    cli, models, tmp_path, monkeypatch, make, bad, name
):
    text = make(tmp_path / name)
    assert cli(*command(models("gpt2"), text)).exit_code == 0
    (tmp_path / "store").rename(tmp_path / "without")
    make(tmp_path / name, bad)
    result = cli(*command(models("gpt2"), text, "--json"))
    assert last_json(result)["stores"][0]["lines_left_out"] == 5 * len(bad)
    first, why = ("line 11", "not JSON (") if name == "t.jsonl" else ("row 10", "has no text in 'text', left out")
    assert f"{name}: {first} and {5 * len(bad) - 1} more: {why}" in result.stderr
    metas = [json.loads((tmp_path / store / "meta.json").read_text()) for store in ("without", "store")]
    assert sum(shard.pop("lines_left_out", 0) for shard in metas[1]["shards"]) == 5 * len(bad)
    assert metas[0] == metas[1]  # all else is as if they were not there
    for stop in (110, 150):  # batches, of which the first 64 are run twice, to measure their norms
        parts = [*command(models("gpt2"), text)[:-1], f"parts{stop}"]
        with monkeypatch.context() as patch:
            patch.setattr(harvesting, "run", stopping(stop))
            assert cli(*parts).exit_code != 0
        assert any(
            "lines_left_out" in s for s in json.loads((tmp_path / parts[-1] / "meta.json").read_text())["shards"]
        )
        assert cli(*parts).exit_code == 0
        assert everything(tmp_path / parts[-1]) == everything(tmp_path / "store")
    again = cli(*command(models("gpt2"), text))
    assert f"; lines without text: {5 * len(bad)}" in again.stdout
    assert f"{first} and {5 * len(bad) - 1} more: {why}" in again.stderr


@llm
def test_what_begins_without_text_is_refused_before_anything_else_is_read(cli, models, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("refgba.llm.models.open_model", None)
    library("pyarrow")
    for name, beginning in (("x.jsonl", BAD[0]), ("x.jsonl", BAD[1]), ("x.jsonl", BAD[2])):
        (corpus / name).write_text(beginning + "\n" + json.dumps({"text": TEXT[0]}) + "\n")
        assert_one_line(cli(*command(models("gpt2"), corpus)), "x.jsonl: line 1: ")
        explore = ["llm", "explore", models("gpt2"), "--site", SITES["gpt2"], "--text", corpus, "-o", "store"]
        assert_one_line(cli(*explore), "x.jsonl: line 1: ")
        evaluate = ["run", models("gpt2"), "--text", corpus]
        for flags in (["evaluate"], ["effects", "--neuron", 1], ["steer", "--neuron", 1, "--by", 1, "--prompt", "a"]):
            assert_one_line(cli("llm", flags[0], *evaluate, *flags[1:]), "x.jsonl: line 1: ")
    assert_one_line(cli(*command(models("gpt2"), corpus)), "x.jsonl: line 1: has no text in 'text'; --column names the")
    (corpus / "x.jsonl").write_text('{"content": "a", "n": 1, "url": "b"}')
    assert_one_line(cli(*command(models("gpt2"), corpus)), "has no text in 'text'; --column names one of content, url")
    (corpus / "x.jsonl").unlink()
    tables(corpus / "x.parquet")
    assert_one_line(cli(*command(models("gpt2"), corpus, "--column", "other")), "x.parquet: has no column 'other'")
    tables(corpus / "x.parquet", (None,), of=0)
    (corpus / "x.parquet").write_bytes((corpus / "x.parquet").read_bytes()[:-9])
    assert_one_line(cli(*command(models("gpt2"), corpus)), "x.parquet: damaged or cannot be read")
    assert not (tmp_path / "store").exists()


@llm
def test_a_file_that_is_named_and_not_utf8_is_refused_before_others_are_read(cli, models, corpus, monkeypatch):
    file = late(corpus.parent, "late.txt")
    monkeypatch.setattr(harvesting, "run", None)
    done = cli(*command(models("gpt2"), corpus, "--text", file))
    assert_one_line(done, "late.txt: not UTF-8 (invalid continuation byte); convert it")


def test_lines_are_counted_once_however_often_the_text_is_read(tmp_path):
    text = lines(tmp_path / "t.jsonl", BAD)
    omissions = Omissions()
    options = TextOptions((text,), left_out=omissions)
    reading = pieces(options)
    for _ in range(25):  # and no further
        next(reading)
    assert omissions.lines == {text: 2 * len(BAD)}
    assert len(list(pieces(options))) == len(list(pieces(options))) == 60
    assert omissions.lines == {text: 5 * len(BAD)}
    with pytest.raises(InputError, match="line 11: not JSON"):
        list(pieces(TextOptions((text,))))  # nobody is told


# ---- documents without rows -----------------------------------------------------------------------------------------


@llm
def test_a_shard_without_rows_is_no_shard_and_a_stop_changes_nothing(cli, models, corpus, tmp_path, monkeypatch):
    """Documents of one token, which is left out as the first of its context."""
    for k in range(240):
        (corpus / f"02x{k:03d}.txt").write_text("a")
    site = ["--site", BLOCKS["gpt2"]]
    assert cli(*command(models("gpt2"), corpus, *site)).exit_code == 0
    for name in (BLOCKS["gpt2"], SITES["gpt2"]):
        open_harvest(tmp_path / "store" / name).verify()
    meta = json.loads((tmp_path / "store" / SITES["gpt2"] / "meta.json").read_text())
    assert all(shard["rows"] for shard in meta["shards"])
    assert max(shard["read"] for shard in meta["shards"]) > 150
    close = Site.close
    for stop in (3, 4):
        calls = []

        def stopped(*arguments, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) > stop:  # of two sites one may then be ahead
                raise KeyboardInterrupt
            close(*arguments)

        parts = [*command(models("gpt2"), corpus, *site)[:-1], f"parts{stop}"]
        with monkeypatch.context() as patch:
            patch.setattr(Site, "close", stopped)
            assert cli(*parts).exit_code != 0
        assert cli(*parts).exit_code == 0
        assert everything(tmp_path / f"parts{stop}") == everything(tmp_path / "store")


@llm
def test_a_text_that_begins_with_documents_without_rows_is_harvested(cli, models, corpus, monkeypatch):
    monkeypatch.setattr(harvesting, "MEASURED", 50)
    for k in range(100):
        (corpus / f"00a{k:03d}.txt").write_text("a")
    (corpus / "00.txt").unlink()
    assert cli(*command(models("gpt2"), corpus)).exit_code == 0
    for file in corpus.glob("??.txt"):
        file.unlink()
    done = cli(*command(models("gpt2"), corpus)[:-1], "none")
    assert_one_line(done, "every row is left out: the first --drop-first of each context, and special tokens")
    assert not (corpus.parent / "none").exists()


# ---- folders ---------------------------------------------------------------------------------------------------------


@llm
def test_stores_go_into_no_folder_that_holds_anything_else(cli, models, corpus, tmp_path):
    model, two = models("qwen2"), ["--site", SITES["qwen2"], "--site", BLOCKS["qwen2"]]
    one = ["--text", corpus, "--context", 16, "-o"]
    assert cli("harvest", model, *two[:2], *one, "store").exit_code == 0
    before = everything(tmp_path)
    assert_one_line(cli("harvest", model, *two, *one, "store"), "store: is a store itself; choose another folder")
    assert_one_line(cli("harvest", model, *two, *one, corpus), "holds 00.txt, which is no store of a harvest")
    assert everything(tmp_path) == before
    assert cli("harvest", model, *two, *one, "both").exit_code == 0
    assert cli("harvest", model, *two, *one, "both").exit_code == 0  # again
    more = ["--site", "model.layers.*.mlp", "--site", "model.norm"]
    assert cli("harvest", model, *more, *one, "both").exit_code == 0  # stores of other sites beside
    assert_one_line(cli("harvest", model, *two[:2], *one, "both"), "both: is not empty")
