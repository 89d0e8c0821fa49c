"""A hub's name: where there is no network, one line at once, and what lies in the cache is opened."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from commands import assert_one_line
from llm_models import llm, needs

from refgba.llm import hub


@pytest.fixture
def unreachable(monkeypatch):
    """No network; calls: how often it was tried."""
    needs()
    import huggingface_hub

    calls = []

    def model_info(name, timeout):
        calls.append((name, timeout))
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    return calls


@llm
def test_a_mistyped_name_without_a_network_is_one_line_at_once(cli, unreachable, tmp_path):
    (tmp_path / "t.txt").write_text("text")
    began = time.monotonic()
    result = cli("harvest", "nobody/nothng", "--site", "x", "--text", "t.txt", "-o", "store")
    assert_one_line(result, "nobody/nothng: neither a folder, nor a .gguf file, nor a model in the cache, and the hub ")
    assert "cannot be reached (Name or service not known)" in result.stderr
    assert "Retry" not in result.stderr
    assert time.monotonic() - began < 10  # it took 25 s
    assert len(unreachable) == 1


@llm
def test_what_lies_in_the_cache_is_opened_without_asking_for_each_file(monkeypatch, unreachable, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    assert hub.options("some/model") == {"local_files_only": True}
    assert unreachable == [("some/model", hub.PATIENCE)]
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: None)
    assert hub.options("some/model") == {}


@llm
def test_a_name_that_the_hub_has_not_or_cannot_have_is_refused(cli, monkeypatch, tmp_path):
    needs()
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def absent(name, timeout):  # noqa: ARG001
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "model_info", absent)
    (tmp_path / "t.txt").write_text("text")
    more = ["--site", "x", "--text", "t.txt", "-o", "store"]
    assert_one_line(cli("harvest", "nobody/nothng", *more), "the hub has none of this name that you may open")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert_one_line(cli("harvest", "no name!", *more), "no name that the hub could have")
