"""Splicing, ablating and steering are exact: what should change nothing changes no bit, the rest what it should."""

from __future__ import annotations

import json

import llm_models
import numpy as np
import pytest
from commands import assert_one_line, last_json
from llm_models import BLOCKS, CAUSAL, KINDS, SITES, TEXT, dictionary, llm, make, needs

from refgba.formats import npz

models, corpus = llm_models.models, llm_models.corpus  # fixtures


@pytest.fixture
def network(tmp_path):
    """The folder of a random dictionary of unit rows; `dead` is a neuron that never fires."""

    def written(dead=None, seed=0, d=llm_models.D):
        folder = tmp_path / f"dictionary-{seed}-{dead}-{d}"
        if not folder.exists():
            npz.write(dictionary(seed, d=d, dead=dead), {}, folder)
        return folder

    return written


def batch(model, side="right", count=3):
    """Some contexts of different lengths, padded on a side: ids and mask."""
    torch, _ = needs()
    parts = [[*model.tokenizer.prefix, *model.tokenizer(TEXT[k])[0].tolist()][: 9 + 5 * k] for k in range(count)]
    longest = max(map(len, parts))
    ids, mask = np.full((count, longest), model.pad), np.zeros((count, longest), np.int64)
    for row, shown, part in zip(ids, mask, parts, strict=True):
        place = slice(0, len(part)) if side == "right" else slice(longest - len(part), longest)
        row[place], shown[place] = part, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def logits(model, ids, mask):
    torch, _ = needs()
    with torch.inference_mode():
        return model.forward(ids, mask).logits


@llm
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("of", ["output", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_changes_no_bit(models, kind, of, side):
    torch, _ = needs()
    from refgba.llm.models import open_model
    from refgba.llm.splice import splicing

    model = open_model(str(models(kind)), device="cpu")
    ids, mask = batch(model, side)
    clean = logits(model, ids, mask)
    for site in (SITES[kind], BLOCKS[kind]):  # modules that return a tensor, and a tuple or a tensor
        with splicing(model, site, of, ids, mask, lambda rows: rows):
            assert torch.equal(logits(model, ids, mask), clean)
        with splicing(model, site, of, ids, mask, lambda rows: rows * 2):
            assert not torch.equal(logits(model, ids, mask)[mask.bool()], clean[mask.bool()])


@llm
@pytest.mark.parametrize("kind", KINDS)
def test_splicing_zeros_is_zero_ablation(models, kind):
    torch, _ = needs()
    from refgba.llm.models import open_model
    from refgba.llm.splice import replacing, splicing

    model = open_model(str(models(kind)), device="cpu")
    ids, mask = batch(model)
    site = SITES[kind]
    with splicing(model, site, "output", ids, mask, replacing(torch.zeros(llm_models.D))):
        spliced = logits(model, ids, mask)
    module = model.module.get_submodule(site)
    plain = module.forward
    module.forward = lambda *given, **named: plain(*given, **named) * 0  # at padding too, which nothing attends to
    ablated = logits(model, ids, mask)
    del module.forward
    assert torch.equal(spliced[mask.bool()], ablated[mask.bool()])


@llm
@pytest.mark.parametrize("kind", CAUSAL)
def test_padding_on_either_side_gives_the_rows_of_a_context_alone(models, kind):
    torch, _ = needs()
    from refgba.llm import sites
    from refgba.llm.models import open_model

    model = open_model(str(models(kind)), device="cpu")
    rows = {}
    for side in ("right", "left"):
        ids, mask = batch(model, side)
        with torch.inference_mode(), sites.capturing(model.module, [SITES[kind]], "output") as seen:
            model.forward(ids, mask)
        rows[side] = seen[SITES[kind]][0][mask.bool()]
    assert torch.allclose(rows["right"], rows["left"], rtol=1e-4, atol=1e-5)


@llm
def test_an_input_given_by_keyword_is_edited(models):
    torch, _ = needs()
    from refgba.llm import sites
    from refgba.llm.models import open_model
    from refgba.llm.splice import splicing

    model = open_model(str(models("qwen2")), device="cpu")
    ids, mask = batch(model)
    site, given = "model.layers.1.self_attn", []
    module = model.module.get_submodule(site)
    module.register_forward_pre_hook(lambda _m, args, named: given.append((len(args), set(named))), with_kwargs=True)
    with torch.inference_mode(), sites.capturing(model.module, [site], "output") as before:
        model.forward(ids, mask)
    assert given[0][0] == 0
    assert "hidden_states" in given[0][1]
    with (
        torch.inference_mode(),
        sites.capturing(model.module, [site], "output") as after,
        splicing(model, site, "input", ids, mask, lambda rows: -rows),
    ):
        model.forward(ids, mask)
    assert not torch.allclose(before[site][0], after[site][0])


@llm
def test_positions_that_are_left_alone_are_not_touched(models):
    from refgba.llm.keeping import Keeping
    from refgba.llm.models import open_model
    from refgba.llm.splice import splicing

    model = open_model(str(models("gemma2")), device="cpu")
    for side in ("right", "left"):
        ids, mask = batch(model, side)
        seen = []

        def note(rows, seen=seen):
            seen.append(len(rows))
            return rows * 0

        with splicing(model, SITES["gemma2"], "output", ids, mask, note, Keeping(2, frozenset({1}))):
            logits(model, ids, mask)
        assert seen == [int(mask.sum()) - 2 * len(ids)]  # <bos> is the first


@llm
@pytest.mark.parametrize("kind", CAUSAL)
def test_ablating_a_dead_neuron_changes_nothing_and_a_living_one_something(models, network, kind, corpus):
    from refgba.llm import effects, splice
    from refgba.llm.models import open_model
    from refgba.llm.networks import open_network
    from refgba.llm.text import TextOptions

    model = open_model(str(models(kind)), device="cpu")
    place = splice.place(open_network(network(dead=3)), model, SITES[kind])
    surveyed = effects.survey(place, TextOptions((corpus,)), 400)
    for replaced in (False, True):
        measured = effects.Effects(place, surveyed, replaced=replaced)
        dead = measured.of([3])
        assert dead.ablated_kl is None
        assert dead.frequencies == [0.0]
        kl, change, _, loss = measured._against((0, 1), measured._changed(lambda codes: codes.clone()), None)
        assert (kl, float(abs(change).max()), loss) == (0.0, 0.0, 0.0)
        alive = measured.of([int(surveyed.frequency.argmax())], (1.0,))
        assert alive.ablated_kl > 0
        assert alive.ablated_kl_where_on > 0
        assert alive.steered[0].kl > 0
        assert len(alive.steered[0].random_kl) == effects.RANDOM


@llm
@pytest.mark.parametrize("kind", CAUSAL)
def test_small_steps_either_way_move_logits_oppositely(models, network, kind):
    torch, _ = needs()
    from refgba.llm import splice, steering
    from refgba.llm.models import open_model
    from refgba.llm.networks import open_network

    model = open_model(str(models(kind)), device="cpu")
    place = splice.place(open_network(network()), model, SITES[kind])
    model.module.double()
    ids, mask = batch(model, count=1)
    clean = logits(model, ids, mask)
    moved = {}
    for s in (1e-3, -1e-3):
        added = steering.direction(place, [2], np.array([s]))
        with steering.pushed(place, added, ids, mask, first=True):
            moved[s] = logits(model, ids, mask) - clean
    up, down = moved[1e-3], moved[-1e-3]
    assert up.norm() > 0
    assert (up + down).norm() < 1e-2 * up.norm()
    assert torch.equal(up[0, 0], torch.zeros_like(up[0, 0]))  # the first position is left alone


@llm
@pytest.mark.parametrize("kind", CAUSAL)
def test_text_written_with_the_cache_is_that_without(models, network, kind):
    from refgba.llm import splice, steering
    from refgba.llm.models import open_model
    from refgba.llm.networks import open_network

    model = open_model(str(models(kind)), device="cpu")
    place = splice.place(open_network(network()), model, SITES[kind])
    added = steering.direction(place, [1, 2], np.array([3.0, -2.0]))
    texts = set()
    for edit in (None, added):
        written = [steering.write(place, "the cat sat", edit, new=12, cache=cache) for cache in (True, False)]
        assert written[0] == written[1]
        texts.add(written[0])
    assert len(texts) == 2


# ---- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(cli, models, corpus):
    """A run that was trained on a harvest of Qwen2's site."""
    assert cli("harvest", models("qwen2"), "--site", SITES["qwen2"], "--text", corpus, "-o", "store").exit_code == 0
    done = cli(
        "train",
        "store",
        "-o",
        "run",
        "--width",
        "48",
        "--groups",
        "3",
        "--steps",
        "60",
        "--batch",
        "64",
        "--centre",
        "off",
    )
    assert done.exit_code == 0, done.output
    return corpus.parent / "run"


@llm
def test_a_run_is_evaluated_at_the_site_that_it_was_harvested_at(cli, models, corpus, run):
    torch, transformers = needs()
    flags = ["--text", corpus, "--tokens", "500", "-o", "result.json", "--json"]
    result = last_json(cli("llm", "evaluate", run, models("qwen2"), *flags))
    assert json.loads((corpus.parent / "result.json").read_text()) == result
    assert result["site"] == SITES["qwen2"]
    assert result["left_alone_as_harvested"]
    model = transformers.AutoModelForCausalLM.from_pretrained(models("qwen2")).eval()
    made = transformers.AutoTokenizer.from_pretrained(models("qwen2"))
    losses, read = [], 0
    for part in TEXT:
        ids = made(part)["input_ids"]
        for start in range(0, len(ids), 64):
            context = torch.tensor([ids[start : start + 64][: 500 - read]])
            read += context.shape[1]
            if context.shape[1] > 1:
                with torch.no_grad():
                    out = model(context).logits[0, :-1].log_softmax(1)
                losses += (-out.gather(1, context[0, 1:, None])).flatten().tolist()
    assert result["points"] == len(losses)
    assert result["clean"]["value"] == pytest.approx(np.mean(losses), rel=1e-5)
    for scope in ("kept", "all"):
        for variant in ("spliced", "zero", "mean"):
            assert result[scope][variant]["kl"]["value"] > 0
        zero, clean, spliced = result[scope]["zero"]["loss"], result["clean"], result[scope]["spliced"]["loss"]
        share = (zero["value"] - spliced["value"]) / (zero["value"] - clean["value"])
        assert result[scope]["loss_recovered"]["zero"]["value"] == pytest.approx(share)
        assert clean["low"] <= clean["value"] <= clean["high"]
    assert sum(part["points"] for part in result["by_position"]) == result["points"]
    shown = cli("llm", "evaluate", run, models("qwen2"), "--text", corpus, "--tokens", "500")
    assert "loss recovered" in shown.stdout


@llm
@pytest.mark.parametrize("format", ["saelens", "npz", "dictionary-learning"])
def test_dictionaries_of_others_give_the_numbers_of_the_run(cli, models, corpus, run, format):
    flags = ["--text", corpus, "--tokens", "300", "--json"]
    mine = last_json(cli("llm", "evaluate", run, models("qwen2"), *flags))
    assert cli("export", run, "-o", "out", "--format", format).exit_code == 0
    more = ["--site", SITES["qwen2"], "--store", "store"]
    theirs = last_json(cli("llm", "evaluate", "out", models("qwen2"), *flags, *more))
    if format != "dictionary-learning":  # which takes unit rows and does not say so
        assert theirs["kept"]["spliced"]["loss"]["value"] == pytest.approx(
            mine["kept"]["spliced"]["loss"]["value"], rel=1e-3
        )
    assert theirs["clean"] == mine["clean"]
    assert theirs["kept"]["zero"] == mine["kept"]["zero"]


@llm
def test_a_masked_model_is_evaluated_on_what_it_has_to_guess(cli, models, corpus, network):
    flags = ["--site", SITES["bert"], "--text", corpus, "--json"]
    result = last_json(cli("llm", "evaluate", network(), models("bert"), *flags))
    assert result["clean"]["value"] > 0
    assert result["kept"]["zero"]["loss"]["value"] != result["clean"]["value"]
    assert result == last_json(cli("llm", "evaluate", network(), models("bert"), *flags))
    said = result["tokens_to_guess"]
    assert said in cli("llm", "evaluate", network(), models("bert"), *flags[:-1]).stdout
    assert result["left_alone"]["special"] == [0, 1, 2, 3, 4]


@llm
def test_the_row_of_a_mask_is_replaced_like_that_of_the_token_that_it_hides(models, corpus, network):
    from refgba import llm as room

    result = room.evaluate(network(), models("bert"), corpus, tokens=200, site=SITES["bert"])
    for scope in ("kept", "all"):  # in the last layer, where each guess depends on its own row alone
        assert (result.values[f"{scope} zero kl"] > 0).all()


@llm
def test_an_encoder_without_a_head_is_judged_by_the_cosine_of_its_embeddings(cli, tmp_path, corpus, network):
    folder = make(tmp_path / "encoder", "bert", head=False)
    site = "encoder.layer.1.output"
    result = last_json(cli("llm", "evaluate", network(), folder, "--site", site, "--text", corpus, "--json"))
    assert "clean" not in result
    assert set(result["kept"]["spliced"]) == {"cosine"}
    assert -1 <= result["all"]["zero"]["cosine"]["value"] < 1
    done = cli("llm", "effects", network(), folder, "--site", site, "--text", corpus, "--neuron", "1")
    assert_one_line(done, "BertModel has no language-model head, and none is started at random")
    done = cli(
        "llm", "steer", network(), folder, "--site", site, "--neuron", "1", "--by", "1", "--prompt", "a", "--peak", "1"
    )
    assert_one_line(done, "does not write text")


@llm
def test_effects_are_ranked_and_measured(cli, models, corpus, run):
    flags = ["--text", corpus, "--tokens", "400", "--sample", "3", "--rank", "2", "--neuron", "5", "-o", "e.json"]
    result = last_json(cli("llm", "effects", run, models("qwen2"), *flags, "--json"))
    assert len(result["ranking"]) == 2
    assert len(result["effects"]) >= 2
    assert result["direct"] == "through the unembedding"
    for effect in result["effects"]:
        assert effect["activation"] == "edited, with the error kept"
        assert len(effect["direct"]["promoted"]) == 10
    top = next(e for e in result["effects"] if e["neurons"] == [result["ranking"][0]["neuron"]])
    assert top["ablated_kl"] > 0
    whole = last_json(cli("llm", "effects", run, models("qwen2"), *flags[:6], "--neuron", "1", "--neuron", "2",
                          "--together", "--replace", "--json"))  # fmt: skip
    assert [effect["neurons"] for effect in whole["effects"]] == [[1, 2]]
    assert whole["effects"][0]["activation"] == "replaced by the changed reconstruction"
    assert cli("llm", "effects", run, models("qwen2"), *flags).exit_code == 0


@llm
def test_the_ranking_is_what_ablation_does_to_first_order(models, corpus, network):
    from refgba.llm import effects, splice
    from refgba.llm.models import open_model
    from refgba.llm.networks import open_network
    from refgba.llm.text import TextOptions

    place = splice.place(open_network(network()), open_model(str(models("gpt2")), device="cpu"), SITES["gpt2"])
    surveyed = effects.survey(place, TextOptions((corpus,)), 600, rank=True)
    measured = effects.Effects(place, surveyed, sample=len(surveyed.contexts))
    best = np.argsort(-abs(surveyed.attribution))[:8]
    exact = np.array([measured.of([int(m)], ()).ablated_loss for m in best])
    assert np.corrcoef(exact, surveyed.attribution[best])[0, 1] > 0.9


@llm
def test_steering_writes_text_beside_the_models_own(cli, models, run):
    flags = ["--neuron", "1", "--neuron", "4", "--by", "8", "--prompt", "the cat", "--new", "6", "--peak", "0.5"]
    result = last_json(cli("llm", "steer", run, models("qwen2"), *flags, "--json"))
    [text] = result["texts"]
    assert text["prompt"] == "the cat"
    assert text["steered"] != text["clean"]
    assert len(text["random"]) == 1
    assert result["peaks"] == [0.5, 0.5]
    assert cli("llm", "steer", run, models("qwen2"), *flags).exit_code == 0


@llm
@pytest.mark.parametrize(
    ("command", "flags", "complaint"),
    [
        ("evaluate", ["--site", "model.layers.0.mlp"], "is of the output of model.layers.1.mlp, not of the output of"),
        ("evaluate", ["--of", "input"], "is of the output of model.layers.1.mlp, not of the input"),
        ("evaluate", ["--context", "99"], "--context 99 is longer than the 64 tokens"),
        ("evaluate", ["--store", "none"], "none: no such file"),
        ("effects", [], "give --neuron M, or --rank N"),
        ("effects", ["--neuron", "48"], "there is no neuron 48; they are numbered from 0 to 47"),
        ("evaluate", ["-o", "corpus"], "is a folder"),
    ],
)
def test_bad_use_is_one_line(cli, models, corpus, run, command, flags, complaint):
    assert_one_line(cli("llm", command, run, models("qwen2"), "--text", corpus, *flags), complaint)


@llm
def test_a_network_of_other_rows_is_refused(cli, models, corpus, network):
    flags = ["--text", corpus, "--site", SITES["qwen2"]]
    done = cli("llm", "evaluate", network(d=24), models("qwen2"), *flags)
    assert_one_line(done, "is for rows of d = 24, model.layers.1.mlp of")
    assert_one_line(cli("llm", "evaluate", network(), models("qwen2"), "--text", corpus), "name it with --site")
    more = ["--neuron", "1", "--by", "1", "--prompt", "a cat", "--site", SITES["qwen2"]]
    assert_one_line(cli("llm", "steer", network(), models("qwen2"), *more), "give --text or --peak")
    done = cli("llm", "steer", network(), models("qwen2"), *more, "--peak", "1", "--new", "70")
    assert_one_line(done, "more than the 64 of")
