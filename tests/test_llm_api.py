"""Language models from Python, and the parts of the room that need no torch: text in pieces, and progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import llm_models
import numpy as np
import pytest
from llm_models import SITES, TEXT, llm

from refgba.errors import InputError
from refgba.llm import text as texts
from refgba.llm.console import describe
from refgba.llm.evaluation import compare
from refgba.llm.harvesting import Progress
from refgba.llm.keeping import Keeping
from refgba.llm.text import Fingerprint, TextOptions, pieces

ROOT = Path(__file__).parents[1]
models, corpus = llm_models.models, llm_models.corpus  # fixtures


@llm
def test_a_notebooks_few_lines(models, corpus, tmp_path):
    import refgba
    from refgba import llm as room

    model = room.open_model(str(models("gpt2")))
    [store] = room.harvest(model, SITES["gpt2"], corpus, tmp_path / "store", context=32)
    context = store.context(30)
    assert "".join(context.pieces) in "".join(TEXT)
    assert context.ids[context.position] == store.tokens(0).token[30]
    assert SITES["gpt2"] in repr(store)
    run = refgba.GBA(width=32, steps=40, batch=64, groups=2).fit(store.store).save(tmp_path / "run")
    result = room.evaluate(tmp_path / "run", model, corpus, tokens=400, store=tmp_path / "store")
    assert "loss recovered" in repr(result)
    assert len(result.values["kept spliced kl"]) == len(result.position)
    assert result.recovered("kept", "zero")["value"] == result.record()["kept"]["loss_recovered"]["zero"]["value"]
    where = {"store": tmp_path / "store"}
    surveyed = room.rank(tmp_path / "run", model, corpus, tokens=400, **where)
    best = int(np.argmax(surveyed.peak))
    [effect] = room.effects_of(tmp_path / "run", model, corpus, [best], (1.0,), tokens=400, sample=2, **where)
    assert effect.peaks == [pytest.approx(float(surveyed.peak[best]))]
    assert "promoted" in repr(effect)
    [written] = room.steer(tmp_path / "run", model, "the cat", best, by=2, new=3, **where)
    assert "steered" in repr(written)
    with pytest.raises(InputError, match=r"^context 65 is longer than the 64 tokens"):
        room.harvest(model, SITES["gpt2"], corpus, tmp_path / "other", context=65)
    assert run is not None


@llm
def test_networks_that_are_compared_have_the_numbers_that_each_has_alone(models, corpus, tmp_path):
    import refgba
    from refgba import llm as room
    from refgba.llm.networks import open_network
    from refgba.llm.splice import place

    model = room.open_model(str(models("gpt2")))
    [store] = room.harvest(model, SITES["gpt2"], corpus, tmp_path / "store", context=32)
    for seed in range(2):
        refgba.GBA(width=32, steps=40, batch=64, groups=2, seed=seed).fit(store.store).save(tmp_path / f"run{seed}")
    where = {"store": tmp_path / "store"}
    alone = [room.evaluate(tmp_path / f"run{seed}", model, corpus, tokens=200, **where) for seed in range(2)]
    places = [place(open_network(tmp_path / f"run{seed}", tmp_path / "store"), model) for seed in range(2)]
    together = compare(places, TextOptions((corpus,)), tokens=200, sinks=False)
    for one, other in zip(alone, together, strict=True):
        whole, part = one.record(), other.record()
        assert whole.pop("all")["zero"]["kl"]["value"] > 0
        assert part == whole
        assert "sinks too" in repr(one)
        assert "sinks too" not in repr(other)
    elsewhere = place(open_network(tmp_path / "run1", tmp_path / "store"), model, keeping=Keeping(2))
    with pytest.raises(InputError, match=r"run0 and .*run1 are not put into one place$"):
        compare([places[0], elsewhere], TextOptions((corpus,)), tokens=200)


@llm
def test_the_benchmark_trains_at_the_l0_of_gba_and_does_nothing_twice(models, corpus, tmp_path):
    from refgba import llm as room

    pytest.importorskip("numba")
    model = str(models("qwen2"))
    room.harvest(room.open_model(model), SITES["qwen2"], corpus, tmp_path / "store", context=32)
    command = [sys.executable, str(ROOT / "benchmarks" / "llm.py"), model, "store", "--text", str(corpus)]
    command += ["--width", "32", "--steps", "20", "--tokens", "300", "--per-document", "2", "--runs", "runs"]
    command += ["--networks", "gba", "gba-centred", "gba-uncentred", "topk", "-o"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for out in ("first.json", "second.json"):
        done = subprocess.run(
            [*command, out], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / out).read_text()) for out in ("first.json", "second.json"))
    assert first == second
    assert "training" not in done.stderr
    [site] = first["sites"]
    other = "gba-uncentred" if site["gba"]["trained"]["centred"] else "gba-centred"
    assert list(site) == ["gba", other, "topk"]
    assert site[other]["trained"]["centred"] is not site["gba"]["trained"]["centred"]
    assert site["topk"]["trained"]["k"] == round(site["gba"]["l0"])
    assert site["topk"]["trained"]["lr"] == 3e-3
    for network in site.values():
        assert {"zero", "mean"} == set(network["kept"]["loss_recovered"])
        held_out = network["held_out"]
        assert 0 < held_out["fvu_of_rows"] < 1.5


def test_a_long_document_comes_in_pieces_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "PIECE", 50)
    whole = "".join(f"line {k} of é text\n" for k in range(40)) + "x" * 130
    (tmp_path / "a.txt").write_text(whole, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": whole}) + "\n\n" + json.dumps({"text": "short"}) + "\n")
    found = list(pieces(TextOptions((tmp_path,))))
    by_document = {n: "".join(piece for m, piece in found if m == n) for n in range(3)}
    assert by_document == {0: whole, 1: whole, 2: "short"}
    assert max(len(piece) for _, piece in found) <= 50
    assert all(piece.endswith(("\n", " ")) for n, piece in found[:10] if n == 0)


def test_files_of_a_folder_are_chosen_and_shuffled(tmp_path):
    for name in ("b.py", "a.py", "c.txt", "x/d.py", ".hidden/e.py", "__pycache__/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "g.py").write_bytes(b"\0\1")
    (tmp_path / "empty.py").write_text("")
    names = [path.name for path in texts.files(TextOptions((tmp_path,), pattern="*.py"))]
    assert names == ["a.py", "b.py", "d.py"]
    orders = {tuple(p.name for p in texts.files(TextOptions((tmp_path,), shuffle=seed))) for seed in range(20)}
    assert len(orders) > 3
    assert {tuple(sorted(order)) for order in orders} == {("a.py", "b.py", "c.txt", "d.py")}
    with pytest.raises(InputError, match=r"holds no files of text named \*\.md"):
        texts.files(TextOptions((tmp_path,), pattern="*.md"))


def test_the_fingerprint_knows_where_documents_begin():
    one, other = Fingerprint(), Fingerprint()
    one.add(0, "ab")
    one.add(1, "c")
    other.add(0, "a")
    other.add(1, "bc")
    assert str(one) != str(other)


def test_positions_count_from_the_first_token_that_is_not_padding():
    ids = np.array([[9, 9, 5, 6, 7, 8], [5, 6, 1, 8, 9, 9]])
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    norm = np.array([[50, 50, 99, 1, 2, 30], [99, 1, 1, 2, 50, 50.0]])
    kept, counts = Keeping(1, frozenset({1}), 10.0)(ids, mask, norm)
    assert kept.tolist() == [[False] * 3 + [True, True, False], [False, True, False, True, False, False]]
    assert counts == {"first": 2, "special": 1, "norm": 1}


@pytest.mark.parametrize(
    ("progress", "seconds", "shown"),
    [
        (Progress(1000, 0, 0.25), 10.0, "25%  1,000 tokens  100 tokens/s  0:30 left"),
        (Progress(1000, 500, None), 10.0, "1,000 tokens  50 tokens/s"),
        (Progress(100_000, 0, 0.01), 100.0, "1%  100,000 tokens  1,000 tokens/s  2:45:00 left"),
    ],
)
def test_progress_is_told_in_tokens_per_second_with_the_time_left(progress, seconds, shown):
    assert describe(progress, seconds) == shown
