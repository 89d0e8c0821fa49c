"""Where a dictionary of another library belongs, by its own words, and whether a site can be that place.

    SAELens               hook_name, once hook_point: a module, or what TransformerLens calls it, blocks.8.hook_mlp_out
    dictionary_learning   submodule_name and layer of its trainer, and io of its buffer
    sparsify              the folder's own name: layers.8.mlp
    Gemma Scope           the folders' names: layer_20/width_16k/average_l0_71

Each calls a place in a model otherwise, so what is compared is what both names say: layer, part of the layer, side, and
the submodule where both are names of modules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from refgba.data.activations import PLACE
from refgba.data.files import read_json
from refgba.formats import gemma_scope, sparsify
from refgba.llm.sites import Of

Part = Literal["stream", "attention", "mlp"]

INDEXES = ("dictionary.json", "cfg.json", "config.json")  # where dictionaries of libraries say what they are
NAMES = ("hook_name", "hook_point", "module_path", "submodule_name")  # what libraries call a site
LAYERS = ("hook_layer", "hook_point_layer", "layer")
SIDES: dict[str, Of] = {"in": "input", "out": "output"}  # dictionary_learning's buffer calls them so.
HOOKS: dict[str, tuple[Part, Of]] = {  # TransformerLens calls them so, and free names hold these words.
    "resid_pre": ("stream", "input"),
    "resid_post": ("stream", "output"),
    "attn_out": ("attention", "output"),
    "mlp_out": ("mlp", "output"),
}
PARTS: dict[str, Part] = {"": "stream"}  # what follows the layer's number in the name of a module
PARTS |= dict.fromkeys(("attn", "self_attn", "attention", "self_attention"), "attention")
PARTS |= dict.fromkeys(("mlp", "feed_forward", "ffn", "ff"), "mlp")
SCOPES: dict[str, Part] = {"res": "stream", "mlp": "mlp"}  # what names of Gemma Scope's repositories end in


@dataclass(frozen=True)
class Spot:
    """A place in a model, as far as a name tells; None for what it does not.

    before, after: what stands on either side of the layer's number in the name of a module.  of: the side.
    """

    before: str | None = None
    layer: int | None = None
    after: str | None = None
    part: Part | None = None
    of: Of | None = None

    def differs(self, other: Spot) -> str | None:
        """What of another place is not so here, in words; None where both may be the same."""
        a, b = self, other
        if a.part == b.part == "stream" and None not in (a.layer, b.layer, a.of, b.of):
            return "another layer" if a.stream != b.stream else None
        if None not in (a.layer, b.layer) and not a.layers & b.layers:
            return "another layer"
        if None not in (a.part, b.part) and a.part != b.part:
            return "another part of the layer"
        modules = a.before is not None and b.before is not None
        same_part = a.part is not None and a.part == b.part
        if modules and not same_part:
            near, layered = _alike(str(a.before), str(b.before)), (a.layer is not None, b.layer is not None)
            if layered[0] != layered[1] or (near and a.after != b.after) or not (near or any(layered)):
                return "another submodule"
        if (modules or same_part) and None not in (a.of, b.of) and a.of != b.of:
            return "the other side"
        return None

    @property
    def layers(self) -> set[int | None]:
        """What its layer may be called: what goes into one is also what the one before puts out."""
        return {self.layer, self.stream} if self.part == "stream" else {self.layer}

    @property
    def stream(self) -> int:
        """The layer after which this is the residual stream: what a layer is given is what the one before put out."""
        return int(self.layer or 0) - (self.of == "input")


def _alike(a: str, b: str) -> bool:
    """Whether names lead to the same place, one of them from farther inside: layers and model.layers."""
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")


def spot_of(name: str, of: Of | None = None, module: bool = False) -> Spot:
    """What a name tells.  of: the side, if it is known.  module: whether it is known to be the name of a module."""
    words = name.split(".")
    at = next((k for k, word in enumerate(words) if word.isdecimal()), None)
    hook = next((HOOKS[key] for key in HOOKS if key in name), (None, None))
    if "hook_" in name:
        return Spot(None, None if at is None else int(words[at]), None, *hook)
    if at is not None:
        after = ".".join(words[at + 1 :])
        return Spot(".".join(words[:at]), int(words[at]), after, PARTS.get(after), of)
    if module or "." in name:
        return Spot(name, None, "", None, of)
    numbered = re.search(r"layer[_-]?(\d+)", name)
    return Spot(None, int(numbered[1]) if numbered else None, None, hook[0], hook[1] or of)


@dataclass(frozen=True)
class Claim:
    """Where a dictionary says that it belongs.

    name: of the site there, None where only a layer is named.  words: name or layer, and where that is said.
    """

    name: str | None
    spot: Spot
    words: str

    @property
    def side(self) -> Of | None:
        """The side of the module that it names, None where it names no module or does not say."""
        return None if self.spot.before is None else self.spot.of

    def differs(self, site: str, of: str) -> str | None:
        """What is different at the side `of` of a model's site, in words; None where it may be the place."""
        return self.spot.differs(spot_of(site, cast(Of, of), module=True))


def claim_of(path: Path) -> Claim | None:
    """What a dictionary of another library says of its place, None where it says nothing.

    InputError for a file of its that is no JSON.
    """
    file, cfg = _index(path)
    parts = [part for part in (cfg, cfg.get("metadata"), cfg.get("trainer")) if isinstance(part, dict)]
    name = next((str(part[key]) for part in parts for key in NAMES if _is_name(part.get(key))), None)
    layer = next((int(part[key]) for part in parts for key in LAYERS if _is_layer(part, key)), None)
    buffer = cfg.get("buffer")
    io = buffer.get("io") if isinstance(buffer, dict) else None
    of: Of | None = "output" if "trainer" not in cfg else SIDES.get(str(io))
    if name is not None:
        spot = spot_of(name, of)
        spot = spot if spot.layer is not None or layer is None else replace(spot, layer=layer)
        return Claim(name, spot, f"{name}, by its {file}")
    if layer is not None:
        return Claim(None, Spot(layer=layer), f"layer {layer}, by its {file}")
    return _by_folders(path)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_layer(part: Mapping[str, Any], key: str) -> bool:
    """Whether a layer is named.  A trainer wants some number even of rows of no model, whose name then is empty."""
    value = part.get(key)
    return type(value) is int and value >= 0 and (key != "layer" or bool(part.get("lm_name", True)))


def _index(path: Path) -> tuple[str, dict[str, Any]]:
    """The JSON in a dictionary's folder, and its name; nothing where there is none."""
    name = next((name for name in INDEXES if (path / name).is_file()), None)
    return ("", {}) if name is None else (name, read_json(path / name))


def harvested_at(path: Path) -> dict[str, str] | None:
    """`model`, `site` and `of` of the harvest that a dictionary of ours was trained on, by what `export` wrote."""
    _, cfg = _index(path)
    for part in (cfg.get("provenance"), cfg.get("refgba"), _get(cfg.get("metadata"), "refgba")):
        settings = _get(_get(part, "harvest"), "settings")
        if isinstance(settings, dict) and all(_is_name(settings.get(name)) for name in PLACE):
            return {name: settings[name] for name in PLACE}
    return None


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _by_folders(path: Path) -> Claim | None:
    """What the names of folders say, where a library has no other place for it."""
    folders = path.absolute().parts
    if sparsify.recognises(path):
        spot = spot_of(folders[-1], "output")
        where = f"{folders[-1]}, by its folder's name"
        return Claim(folders[-1], spot, where) if spot.before and spot.layer is not None else None
    if gemma_scope.recognises(path):
        numbered = next((found for part in folders[::-1] if (found := re.fullmatch(r"layer_(\d+)", part))), None)
        if numbered:
            kind = re.search(r"gemma-scope-[^/]*-(res|mlp)\b", str(path.absolute()))
            part = SCOPES[kind[1]] if kind else None
            spot = Spot(None, int(numbered[1]), None, part, "output" if kind else None)
            return Claim(None, spot, f"{numbered[0]}, by its folders' names")
    return None
