"""What users hold: names, folders, sizes, seeds, steps, and what is refused."""

import json
import math
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepladder import models as module
from stepladder import presets
from stepladder.encoders import ConvEncoderConfig
from stepladder.errors import CheckpointError, ConfigError
from stepladder.layouts import GridLayout
from stepladder.models import ModelSpec, embedded_models, find_model, parse_model_spec
from stepladder.tokenizer import Encoding, Tokenizer
from stepladder.tokenizer_config import LadderConfig, TokenizerConfig

PACKAGE = Path(module.__file__).parent


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(presets.tiny())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return tokenizer.eval()


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_saved_and_loaded_is_the_same_bit_for_bit(tokenizer, saved, images):
    loaded = Tokenizer.from_pretrained(saved)
    assert loaded.config == tokenizer.config
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.fingerprint() == tokenizer.fingerprint()
    found = loaded.decode(loaded.encode(images), seeds=[1, 2])
    torch.testing.assert_close(found, tokenizer.decode(tokenizer.encode(images), seeds=[1, 2]), atol=1e-5, rtol=0)


def test_half_precision_halves_the_file_and_stays_close(tokenizer, saved, images, tmp_path):
    tokenizer.save_pretrained(tmp_path, dtype=torch.float16)
    loaded = Tokenizer.from_pretrained(str(tmp_path))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path, saved)]
    assert sizes[0] < 0.7 * sizes[1]
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    latents = [model.encode(images).latent for model in (loaded, tokenizer)]
    torch.testing.assert_close(latents[0], latents[1], atol=1e-2, rtol=1e-2)
    assert loaded.fingerprint() == tokenizer.fingerprint()


def test_the_fingerprint_is_that_of_the_encoder_and_not_of_the_ladder_or_decoder(tokenizer):
    base = Tokenizer(replace(presets.tiny(), ladder=LadderConfig(num_stages=1)))
    fresh = base.fingerprint()
    assert fresh != tokenizer.fingerprint()
    base.encoder.load_state_dict(tokenizer.encoder.state_dict())
    base.bottleneck.load_state_dict(tokenizer.bottleneck.state_dict())
    assert base.fingerprint() == tokenizer.fingerprint()
    base.bottleneck.scale.mean += 1
    assert base.fingerprint() != tokenizer.fingerprint()


def test_the_sign_of_a_zero_makes_no_other_encoder():
    tokenizer = Tokenizer(presets.tiny())
    found = set()
    for zero in (0.0, -1e-9):  # the latter is -0 in half precision, and 0 once it is averaged with itself
        torch.nn.init.constant_(tokenizer.encoder.out.bias, zero)
        found.add(tokenizer.fingerprint())
    assert len(found) == 1


def test_a_decode_is_its_own_last_stage_and_follows_its_seeds(tokenizer, images):
    code = tokenizer.encode(images)
    assert code.size == (20, 30)
    assert code.latent.shape == (2, 16, 3, 4)
    *_, last = tokenizer.decode_progressively(code, seeds=[3, 4])
    assert torch.equal(tokenizer.decode(code, seeds=[3, 4]), last)
    assert torch.equal(tokenizer.decode(code), tokenizer.decode(code, seeds=[0, 1]))
    assert not torch.allclose(tokenizer.decode(code, seeds=[3, 5])[1], last[1], atol=1e-4)


def test_a_bare_latent_decodes_to_what_it_covers_or_to_the_size_that_is_asked_for(tokenizer, images):
    code = tokenizer.encode(images)
    whole = tokenizer.decode(code.latent)
    assert whole.shape == (2, 3, 24, 32)
    assert torch.equal(tokenizer.decode(code), whole[..., :20, :30])
    assert torch.equal(tokenizer.decode(code, size=(5, 32)), whole[..., :5, :])


def test_steps_are_the_tokenizer_s_own_unless_a_call_names_them(tokenizer, images):
    code = tokenizer.encode(images)
    assert tokenizer.steps_per_stage == presets.tiny().steps_per_stage == 2
    assert torch.equal(tokenizer.decode(code), tokenizer.decode(code, steps=2))
    assert torch.equal(tokenizer.decode(code, steps=(2, 2, 2)), tokenizer.decode(code, steps=2))
    assert not torch.equal(tokenizer.decode(code, steps=(1, 2, 2)), tokenizer.decode(code, steps=2))


def test_tiles_are_the_tokenizer_s_own_unless_a_call_names_them(tokenizer, images):
    assert tokenizer.tile_side() == presets.tiny().tile == 1024
    assert (tokenizer.tile_side(0), tokenizer.tile_side(64)) == (0, 64)
    code = tokenizer.encode(images)
    assert torch.equal(tokenizer.decode(code, tile=1024), tokenizer.decode(code))
    stages = list(tokenizer.decode_progressively(code, tile=32))
    assert torch.equal(stages[-1], tokenizer.decode(code, tile=32))


def test_the_side_of_tiles_is_stored_and_read_back(tmp_path):
    Tokenizer(replace(presets.tiny(), tile=64)).save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).tile_side() == 64
    path = tmp_path / "config.json"
    data = json.loads(path.read_text("utf-8"))
    data["tokenizer"]["tile"] = 40
    path.write_text(json.dumps(data), "utf-8")
    text = r"^Tile side 40 is not 0 or a multiple of 32\. Pass one, for example 32\.$"
    with pytest.raises(CheckpointError, match=text):
        Tokenizer.from_pretrained(tmp_path)
    del data["tokenizer"]["tile"]  # as earlier versions wrote it
    path.write_text(json.dumps(data), "utf-8")
    assert Tokenizer.from_pretrained(tmp_path).tile_side() == 1024


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_and_latents_of_other_floats_are_converted(tokenizer, images, dtype):
    code = tokenizer.encode(images.to(dtype))
    assert code.latent.dtype == torch.float32
    found = tokenizer.decode(code.latent.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(code.latent, tokenizer.encode(images).latent, atol=0.1, rtol=0)


def test_images_and_latents_can_be_trained_on(tokenizer, images):
    code = tokenizer.encode(images)
    layer = torch.nn.Conv2d(16, 1, 1)
    layer(code.latent).sum().backward()
    assert layer.weight.grad.abs().max() > 0
    assert not tokenizer.decode(code).requires_grad
    assert not tokenizer.decode(code).is_inference()


def test_neither_call_touches_the_global_random_state(tokenizer, images):
    state = torch.random.get_rng_state()
    tokenizer.decode(tokenizer.encode(images))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (torch.zeros(3, 8, 8), r"Images have shape \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"shape \(0, 3, 8, 8\) .* of shape \(B, 3, H, W\), none of them 0"),
        (torch.zeros(1, 4, 8, 8), r"Accepted: floats in \[-1, 1\] of shape \(B, 3, H, W\)"),
        (np.zeros((1, 3, 8, 8), np.float32), r"^Images are of type ndarray and no tensor\. Accepted: floats in"),
        (torch.full((1, 3, 8, 8), torch.nan), r"^Images have values from nan to nan\. Accepted: floats in \[-1, 1\]"),
        (
            torch.full((1, 3, 8, 8), 255.0),
            r"^Images have values from 255 to 255\. .* Use stepladder\.images\.to_tensor",
        ),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"dtype torch\.uint8.* Use stepladder\.images\.to_tensor"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(tokenizer, bad, text):
    with pytest.raises(ValueError, match=text):
        tokenizer.encode(bad)


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("shape", "options", "text"),
    [
        (
            (2, 8, 3, 4),
            {},
            r"Latent has shape \(2, 8, 3, 4\).* Accepted: floats of shape \(B, 16, h, w\)\. Encode with",
        ),
        ((16, 3, 4), {}, r"Latent has shape \(16, 3, 4\)"),
        ((2, 16, 3, 4), {"seeds": [1]}, r"1 seeds for 2 latents\. Pass one seed for each image"),
        ((2, 16, 3, 4), {"seeds": [1, -1]}, r"Seed -1 is outside \[0, 2\^63\)"),
        (
            (2, 16, 3, 4),
            {"size": (25, 32)},
            r"Size \(25, 32\) does not fit a latent that covers \(24, 32\)\. Pass a size",
        ),
        ((2, 16, 3, 4), {"size": (0, 3)}, r"Size \(0, 3\) does not fit"),
        ((2, 16, 3, 4), {"steps": 0}, r"Steps per stage 0 is outside 1 to 10,000"),
        (
            (2, 16, 3, 4),
            {"tile": 100},
            r"^Tile side 100 is not 0 or a multiple of 32\. Pass one, for example 96\.$",
        ),
        ((2, 16, 3, 4), {"tile": -32}, r"^Tile side -32 is not 0 or a multiple of 32\. Pass one, for example 32\.$"),
        ((2, 16, 3, 4), {"steps": (1, 2)}, r"2 numbers of steps for 3 stages"),
        ((2, 16, 3, 4), {"steps": 1.5}, r"^Steps per stage are 1\.5\. Pass a whole number, or one for each stage\.$"),
        (
            (2, 16, 3, 4),
            {"seeds": 3},
            r"^Seeds 3 is one number\. Pass a list with one seed for each image, \[3\] for one",
        ),
        ((2, 16, 3, 4), {"noise": "none"}, r"^Noise 'none' is unknown\. Accepted: drawn, zero\.$"),
        ((2, 16, 3, 4), {"sampler": "leap"}, r"^Sampler 'leap' is unknown\. Accepted: euler, heun, ancestral\.$"),
        ((2, 16, 3, 4), {"sampler": "ancestral", "noise": "zero"}, r"^Noise 'zero' does not fit sampler 'ancestral'"),
    ],
)
def test_what_does_not_fit_is_refused(tokenizer, shape, options, text):
    with pytest.raises(ValueError, match=text):
        tokenizer.decode(torch.zeros(shape), **options)
    with pytest.raises(ValueError, match="dtype"):
        tokenizer.decode(torch.zeros(2, 16, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("text", "name", "steps"),
    [
        ("photo", "photo", None),
        ("photo@8", "photo", 8),
        ("a/b@16", "a/b", 16),
        ("./runs/x@1", "./runs/x", 1),
        ("a@b@2", "a@b", 2),
    ],
)
def test_a_model_specification_names_a_model_and_its_steps(text, name, steps):
    spec = parse_model_spec(text)
    assert spec == ModelSpec(name, steps)
    assert str(spec) == text


@pytest.mark.parametrize("text", ["photo@0", "photo@-1", "photo@x", "photo@", "photo@1.5", "photo@²", "photo@ 8"])
def test_wrong_steps_in_a_model_specification_are_refused(text):
    with pytest.raises(ConfigError, match=r"Steps per stage '.*' of model 'photo' is not a whole number of 1 to"):
        parse_model_spec(text)


@pytest.mark.parametrize("text", ["", "@8"])
def test_a_model_specification_has_a_name(text):
    with pytest.raises(ConfigError, match=r"has no name\. Write MODEL or MODEL@N"):
        parse_model_spec(text)


@pytest.mark.parametrize("name", ["foto", "no/such/folder", "../x", "a b/c", "x" * 5000, "a\0b", ""])
def test_an_unknown_name_is_one_line_that_lists_what_is_accepted(name):
    with pytest.raises(CheckpointError, match=r"Unknown model .* Accepted: an embedded name .*, a folder, or a hub id"):
        Tokenizer.from_pretrained(name)


def test_every_embedded_model_loads_under_its_name():
    for name in embedded_models():
        assert Tokenizer.from_pretrained(name).config.description


def test_a_hub_id_that_cannot_be_fetched_is_one_line(monkeypatch):
    def snapshot_download(name, **options):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(module, "snapshot_download", snapshot_download)
    with pytest.raises(
        CheckpointError, match=r"'a/b' is no folder here and cannot be fetched from the hub: no network\."
    ):
        find_model("a/b")


def test_the_schedule_follows_from_the_ladder(tokenizer):
    assert tokenizer.schedule.num_stages == 3
    assert [stage.t_start for stage in tokenizer.schedule.stages] == pytest.approx([1, 0.8, 0.5])
    assert tokenizer.decoder.side_multiple == 8 * 4
    assert tokenizer.layout == GridLayout(channels=16, stride=8)
    assert tokenizer.side_multiple == 8 * 4
    assert tokenizer.device.type == "cpu"


@pytest.mark.parametrize(
    ("config", "values", "text"),
    [
        (LadderConfig, {"num_stages": 0}, "Number of stages 0 is outside 1 to 8"),
        (LadderConfig, {"num_stages": 9}, "Number of stages 9 is outside 1 to 8"),
        (LadderConfig, {"gamma": math.nan}, r"gamma nan is outside \(0, 1/3\]"),
        (TokenizerConfig, {"latent_channels": 0}, "Tokenizer latent_channels 0 is outside 1 to"),
        (TokenizerConfig, {"steps_per_stage": 0}, "Tokenizer steps_per_stage 0 is outside 1 to 10,000"),
        (TokenizerConfig, {"tile": -1}, r"^Tokenizer tile -1 is outside 0 to 65,536\."),
        (ConvEncoderConfig, {"stride": 2}, "Encoder stride 2 is outside 4 to 64"),
        (ConvEncoderConfig, {"width": 0}, "Encoder width 0 is outside 1 to"),
    ],
)
def test_configurations_are_checked_when_they_are_made(config, values, text):
    with pytest.raises(ConfigError, match=text):
        config(**values)


def test_an_encoding_cannot_be_changed(tokenizer, images):
    code = tokenizer.encode(images)
    assert isinstance(code, Encoding)
    assert code.indices is None
    with pytest.raises(AttributeError):
        code.size = (1, 1)


def test_a_tokenizer_in_bfloat16_decodes_close_to_float32():
    tokenizer = Tokenizer(presets.tiny()).eval()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = tokenizer.decode(latent, seeds=[0])
    found = tokenizer.to(torch.bfloat16).decode(latent, seeds=[0])
    assert found.dtype == torch.float32
    assert (found - wanted).abs().mean() < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fingerprint_is_that_of_the_weights_before_they_were_rounded(saved, dtype):
    before = (tokenizer := Tokenizer.from_pretrained(saved)).fingerprint()
    assert tokenizer.to_precision(dtype).fingerprint() == before
    assert tokenizer.to_precision(torch.float32).fingerprint() == before
    tokenizer.load_state_dict((other := Tokenizer(tokenizer.config)).state_dict())
    assert tokenizer.fingerprint() == other.fingerprint() != before


def test_five_frames_lead_from_a_decode_to_the_network():
    tokenizer, found = Tokenizer(presets.tiny()).eval(), []

    def note(*_):
        frames = (frame.f_code for frame, _ in traceback.walk_stack(None))
        found.append([code.co_qualname for code in frames if Path(code.co_filename).is_relative_to(PACKAGE)])

    tokenizer.decoder.network.register_forward_pre_hook(note)
    tokenizer.decode(torch.zeros(1, 16, 4, 4), steps=1)
    assert found[0] == [
        "BoundNetwork.__call__",
        "integrate",
        "run_stages",
        "Tokenizer.decode_progressively",
        "Tokenizer.decode",
    ]
