"""Uploading to a hub and loading from it; the hub is a stub on this machine."""

import re
from importlib import metadata

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants

from hub_fakes import hub
from stepladder import CheckpointError, Tokenizer, pretrained
from stepladder.presets import tiny


@pytest.fixture
def server(monkeypatch, tmp_path):
    with hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        huggingface_hub.utils.disable_progress_bars()
        yield found
        huggingface_hub.utils.enable_progress_bars()


def tokenizer(seed: int = 0) -> Tokenizer:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tokenizer(tiny()).eval()


def same(one: Tokenizer, two: Tokenizer) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return one.config == two.config and all(torch.equal(a, b) for a, b in pairs)


def test_what_was_uploaded_is_loaded_again(server, tmp_path):
    own = tokenizer()
    address = own.push_to_hub("me/tiny", token="secret")
    assert address.startswith(f"{server.address}/me/tiny/commit/")
    assert sorted(server.commits["me/tiny"][-1]) == ["README.md", "config.json", "model.safetensors"]
    assert same(Tokenizer.from_pretrained("me/tiny", token="secret", cache_dir=tmp_path), own)
    assert {path.name for path in tmp_path.rglob("snapshots/*/*")} == {"config.json", "model.safetensors"}


def test_a_revision_is_the_model_as_it_was_then(server, tmp_path):
    first, second = tokenizer(1), tokenizer(2)
    revision = first.push_to_hub("me/tiny", token="secret").rpartition("/")[2]
    second.push_to_hub("me/tiny", token="secret", commit_message="Longer training")
    load = lambda **words: Tokenizer.from_pretrained("me/tiny", token="secret", cache_dir=tmp_path, **words)  # noqa: E731
    assert same(load(revision=revision), first)
    assert same(load(), second)
    assert one_line(lambda: load(revision="no-such-branch")).startswith(
        "Model 'me/tiny' is no folder here and cannot be"
    )


def test_what_was_fetched_is_loaded_without_a_hub(server, tmp_path):
    own = tokenizer()
    own.push_to_hub("me/tiny", token="secret")
    text = one_line(lambda: Tokenizer.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True))
    assert text.endswith("Check the name, or download it and pass its folder.")
    Tokenizer.from_pretrained("me/tiny", token="secret", cache_dir=tmp_path)
    server.requests.clear()
    assert same(Tokenizer.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True), own)
    assert server.requests == []


def test_without_its_token_a_private_model_is_refused_in_one_line(server, tmp_path):
    tokenizer().push_to_hub("me/tiny", token="secret")
    text = one_line(lambda: Tokenizer.from_pretrained("me/tiny", token="wrong", cache_dir=tmp_path))
    assert text.startswith("Model 'me/tiny' is no folder here and cannot be fetched from the hub: 401 Client Error.")


def one_line(load) -> str:
    with pytest.raises(CheckpointError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_card_on_the_hub_has_a_header_and_says_how_to_load_the_model(server):
    tokenizer().push_to_hub("me/tiny", token="secret")
    card = ModelCard(server.commits["me/tiny"][-1]["README.md"].decode())
    assert card.data.library_name == "stepladder"
    assert card.data.tags == ["image-tokenizer", "autoencoder", "diffusion-decoder", "f8c16"]
    assert 'tokenizer = Tokenizer.from_pretrained("me/tiny")' in card.text
    assert "| decoder | conv, " in card.text


def test_a_card_that_is_written_already_goes_up_as_it_is(server):
    text = "---\nlibrary_name: stepladder\n---\n\n# Mine\n"
    tokenizer().push_to_hub("me/tiny", token="secret", model_card_kwargs={"text": text})
    assert server.commits["me/tiny"][-1]["README.md"].decode() == text


def test_a_folder_gets_no_card_unless_one_is_asked_for(tmp_path):
    tokenizer().save_pretrained(tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["config.json", "model.safetensors"]
    tokenizer().save_pretrained(tmp_path / "card", model_card_kwargs={"license": "mit"})
    assert "license: mit" in (tmp_path / "card" / "README.md").read_text("utf-8")


def test_the_mixin_carries_library_and_tags():
    info = Tokenizer._hub_mixin_info
    assert info.model_card_data.library_name == "stepladder"
    assert {"image-tokenizer", "autoencoder", "diffusion-decoder"} <= set(info.model_card_data.tags)


def test_the_addresses_of_the_project_are_those_of_the_installed_package(monkeypatch):
    lines = ["Repository, https://host/stepladder", "Documentation, https://host/docs, the newest"]

    class Installed:
        def get_all(self, name):
            return lines if name == "Project-URL" else None

    monkeypatch.setattr(metadata, "metadata", lambda name: Installed())
    assert pretrained._project_url("Repository") == "https://host/stepladder"
    assert pretrained._project_url("Documentation") == "https://host/docs, the newest"
    assert pretrained._project_url("Changelog") is None


def test_a_card_names_the_addresses_that_there_are(monkeypatch):
    monkeypatch.setattr(Tokenizer._hub_mixin_info, "repo_url", "https://host/stepladder")
    monkeypatch.setattr(Tokenizer._hub_mixin_info, "docs_url", None)
    assert str(tokenizer().generate_model_card()).endswith("More: [code](https://host/stepladder).\n")
    monkeypatch.setattr(Tokenizer._hub_mixin_info, "repo_url", None)
    assert not re.search("More:", str(tokenizer().generate_model_card()))
