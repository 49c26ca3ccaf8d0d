"""Autoencoders of diffusers with random weights, saved in a temporary folder."""

import pytest
import torch

from stepladder.encoders import DiffusersEncoderConfig, FrozenEncoder
from stepladder.encoders.frozen import kept
from stepladder.errors import CheckpointError, ImageError

diffusers = pytest.importorskip("diffusers")

SMALL = {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1}
SIDES = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


def kl():
    return diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.18, shift_factor=0.3, **SMALL, **SIDES)


def kl_with_statistics():
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    return diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.5, **statistics, **SMALL, **SIDES)


def flux2():
    model = diffusers.AutoencoderKLFlux2(latent_channels=4, **SMALL, **SIDES)
    model.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    model.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return model


def tiny():
    widths = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    return diffusers.AutoencoderTiny(latent_channels=4, **widths, **blocks)


def dc():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.41,
    )


def raw_of(model, images: torch.Tensor) -> torch.Tensor:
    """The latent that the autoencoder itself would decode."""
    found = model.encode(images)
    for name in ("latent_dist", "latent", "latents"):
        if hasattr(found, name):
            value = getattr(found, name)
            return value.mode() if name == "latent_dist" else value
    raise AssertionError


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def saved(model, folder, **changes) -> FrozenEncoder:
    model.save_pretrained(folder / "vae")
    return FrozenEncoder(DiffusersEncoderConfig(source=str(folder), subfolder="vae", stride=2, **changes), 4)


@pytest.mark.parametrize("build", [kl, kl_with_statistics, flux2, tiny, dc])
@torch.no_grad()
def test_raw_latents_are_what_the_autoencoder_decodes(build, tmp_path):
    model = build().eval()
    encoder = saved(model, tmp_path)
    torch.testing.assert_close(encoder(images()), raw_of(model, images()))
    assert encoder(images()).shape == (2, 4, 16, 16)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (kl, lambda model, raw: (raw - 0.3) * 0.18),
        (
            kl_with_statistics,
            lambda model, raw: (raw - _row(model.config.latents_mean)) * 0.5 / _row(model.config.latents_std),
        ),
        (tiny, lambda model, raw: raw),
        (dc, lambda model, raw: raw * 0.41),
    ],
    ids=["kl", "statistics", "tiny", "dc"],
)
@torch.no_grad()
def test_scales_are_those_of_the_pipelines(build, expected, tmp_path):
    model = build().eval()
    encoder = saved(model, tmp_path)
    raw = encoder(images())
    torch.testing.assert_close(encoder.pipeline_scale.pipeline(raw), expected(model, raw))
    torch.testing.assert_close(encoder.pipeline_scale.raw(expected(model, raw)), raw)


@torch.no_grad()
def test_flux2_is_packed_and_normalised_as_its_pipeline_does(tmp_path):
    from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline

    model = flux2().eval()
    encoder = saved(model, tmp_path)
    raw = encoder(images())
    packed = Flux2Pipeline._patchify_latents(raw)
    deviation = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
    expected = (packed - model.bn.running_mean.view(1, -1, 1, 1)) / deviation.view(1, -1, 1, 1)
    torch.testing.assert_close(encoder.pipeline_scale.pipeline(raw), expected)
    torch.testing.assert_close(encoder.pipeline_scale.raw(expected), raw)


def test_a_sample_is_the_same_alone_or_in_a_batch_and_differs_from_the_mean(tmp_path):
    model = kl().eval()
    mean, sample = saved(model, tmp_path), saved(model, tmp_path, posterior="sample")
    together = sample(images())
    torch.testing.assert_close(together[1:], sample(images()[1:]))
    noise = (together - mean(images())) / model.encode(images()).latent_dist.std
    assert abs(noise.std().item() - 1) < 0.1 and abs(noise.mean().item()) < 0.1


def test_what_is_no_autoencoder_or_not_there_is_refused(tmp_path):
    gone = DiffusersEncoderConfig(source="name-of-a-folder")  # no hub id: nothing is asked of the hub
    with pytest.raises(CheckpointError, match=r"'name-of-a-folder' is not here.*--encoder PATH"):
        FrozenEncoder(gone, 4).open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be loaded by diffusers.*--encoder PATH"):
        FrozenEncoder(DiffusersEncoderConfig(source=str(tmp_path / "empty")), 4).open()
    network = diffusers.UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
        layers_per_block=1,
    )
    network.save_pretrained(tmp_path / "network")
    with pytest.raises(CheckpointError, match="holds a UNet2DModel, which encodes nothing"):
        FrozenEncoder(DiffusersEncoderConfig(source=str(tmp_path / "network")), 4).open()


@pytest.mark.parametrize(
    ("failure", "expected", "text"),
    [
        (RuntimeError("sizes\nmust match"), ImageError, "AutoencoderKL takes no images of 128 x 128: sizes must"),
        (torch.OutOfMemoryError("out of memory"), torch.OutOfMemoryError, "^out of memory$"),  # batches get smaller
    ],
)
def test_what_an_autoencoder_raises_is_one_line_with_the_size(failure, expected, text, tmp_path, monkeypatch):
    def fail(*_):
        raise failure

    monkeypatch.setattr(diffusers.AutoencoderKL, "encode", fail)
    with pytest.raises(expected, match=text) as raised:
        saved(kl(), tmp_path).open()
    assert "\n" not in str(raised.value)


def _row(values) -> torch.Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def test_the_commit_of_the_hub_is_kept_by_the_model(tmp_path, monkeypatch):
    commit, asked = "89abcdef01" * 4, []
    place = tmp_path / "snapshots" / commit / "vae" / "config.json"

    def load(source, **options):
        asked.append((source, options))
        return kl()

    monkeypatch.setattr(diffusers.AutoModel, "from_pretrained", load)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, revision: str(place))
    config = DiffusersEncoderConfig(source="owner/name", subfolder="vae", stride=2)
    encoder = FrozenEncoder(config, 4)
    assert kept(encoder, None).revision is None
    encoder.open()
    known = kept(encoder, [1.0] * 4)
    assert (known.source, known.revision) == ("owner/name", commit)
    with pytest.raises(CheckpointError, match="is another one"):
        FrozenEncoder(known, 4).open()
    with pytest.raises(CheckpointError, match="is another one"):
        FrozenEncoder(known, 4).open("other/name")
    assert [options.get("revision") for _, options in asked] == [None, commit, None]
