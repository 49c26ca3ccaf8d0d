import copy
import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from frozen_fakes import onnx_weights, save_decoder_of, write_onnx_encoder
from stepladder import Tokenizer
from stepladder.encoders import FrozenEncoder, LatentFilesConfig, OnnxEncoderConfig, same_encoder
from stepladder.encoders.fingerprint import TOLERANCE, distance, fixed_image
from stepladder.encoders.frozen import kept
from stepladder.encoders.scale import PipelineScale
from stepladder.errors import CheckpointError, ConfigError, ImageError

pytest.importorskip("onnxruntime")


@pytest.fixture
def file(tmp_path):
    return write_onnx_encoder(tmp_path / "encoder.onnx")


def config(file, **changes) -> OnnxEncoderConfig:
    return OnnxEncoderConfig(source=str(file), image_range=(0.0, 1.0), **changes)


def images(count: int = 2, side: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_an_onnx_encoder_computes_what_the_file_says(file):
    weight, bias = (torch.from_numpy(value.copy()) for value in onnx_weights(file))
    expected = F.conv2d((images() + 1) / 2, weight, bias, stride=8)
    torch.testing.assert_close(FrozenEncoder(config(file), 6)(images()), expected)


def test_it_has_no_weights_and_opens_at_the_first_image(file):
    encoder = FrozenEncoder(config(file), 6)
    assert not list(encoder.parameters()) and not encoder.state_dict() and not encoder.is_open
    encoder(images())
    assert encoder.is_open


def test_a_model_in_half_precision_encodes_in_float32(file, tmp_path):
    tokenizer = Tokenizer.from_pretrained(save_decoder_of(file, tmp_path / "decoder"))
    tokenizer.encoder.open(str(file))
    latent = tokenizer.encode(images()).latent
    assert torch.equal(tokenizer.to_precision(torch.bfloat16).encode(images()).latent, latent)


def test_copies_share_the_open_encoder(file):
    encoder = FrozenEncoder(config(file), 6)
    encoder.open()
    file.unlink()
    torch.testing.assert_close(copy.deepcopy(encoder)(images()), encoder(images()))


def test_the_fingerprint_is_the_same_at_every_call_and_tells_encoders_apart(file, tmp_path):
    own = FrozenEncoder(config(file), 6).measure_fingerprint()
    assert own == FrozenEncoder(config(file), 6).measure_fingerprint()
    other = FrozenEncoder(config(write_onnx_encoder(tmp_path / "b.onnx", seed=1)), 6).measure_fingerprint()
    assert distance(own, own) == 0 and distance(other, own) > 10 * TOLERANCE
    assert distance(own[:3], own) == float("inf")


def test_the_fixed_image_uses_the_range_and_all_channels_differ():
    image = fixed_image()
    assert image.shape == (1, 3, 128, 128) and image.abs().max() <= 1 and (image.std(dim=(2, 3)) > 0.2).all()
    assert not torch.allclose(image[:, 0], image[:, 1])


def test_half_precision_passes_and_another_encoder_is_refused(file, tmp_path):
    own = FrozenEncoder(config(file), 6).measure_fingerprint()
    rounded = torch.tensor(own).bfloat16().tolist()
    FrozenEncoder(config(file, fingerprint=rounded), 6).open()
    other = write_onnx_encoder(tmp_path / "other.onnx", seed=1)
    with pytest.raises(CheckpointError, match=r"other.onnx is another one .* differs by \d+%.*up to 5%.*encoder.onnx"):
        FrozenEncoder(config(file, fingerprint=own), 6).open(str(other))


def test_a_latent_of_another_shape_is_refused(file):
    with pytest.raises(ConfigError, match=r"makes latents of 6x16x16 .* 4x16x16 here.*latent_channels"):
        FrozenEncoder(config(file), 4).open()
    with pytest.raises(ConfigError, match=r"6x16x16 .* 6x8x8 here.*stride"):
        FrozenEncoder(config(file, stride=16), 6).open()
    of_model = FrozenEncoder(config(file, fingerprint=[1.0] * 4), 4)
    with pytest.raises(CheckpointError, match=r"another one than that of the model: .* 6x16x16, and not 4x16x16.*Pass"):
        of_model.open()


def test_a_missing_file_says_what_to_pass(tmp_path):
    encoder = FrozenEncoder(OnnxEncoderConfig(source="gone.onnx"), 6)
    with pytest.raises(CheckpointError, match=r"'gone.onnx' is not here.*--encoder PATH"):
        encoder(images())
    with pytest.raises(CheckpointError, match=r"'elsewhere.onnx' is not here.*those of 'gone.onnx'"):
        encoder.open("elsewhere.onnx")


def test_a_file_on_the_hub_is_fetched_and_what_the_hub_says_is_told(file, monkeypatch):
    asked = []

    commit = "0123456789" * 4
    fetched = file.parent / "snapshots" / commit / "files" / "encoder.onnx"
    fetched.parent.mkdir(parents=True)
    file.rename(fetched)

    def download(repository, name, revision):
        asked.append((repository, name, revision))
        if name != "files/encoder.onnx":
            raise OSError("404 Client Error.")
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    named = OnnxEncoderConfig(source="owner/name/files/encoder.onnx", image_range=(0.0, 1.0), revision="v2")
    encoder = FrozenEncoder(named, 6)
    assert encoder(images()).shape == (2, 6, 3, 3)
    assert kept(encoder, None).revision == commit
    with pytest.raises(CheckpointError, match=r"cannot be fetched from the hub: 404 Client Error\. Pass"):
        encoder.open("owner/name/gone.onnx")
    assert asked == [("owner/name", "files/encoder.onnx", "v2"), ("owner/name", "gone.onnx", None)]


def test_a_file_that_is_no_encoder_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(CheckpointError, match=r"text.onnx is no ONNX model.*Export it again"):
        FrozenEncoder(config(tmp_path / "text.onnx"), 6).open()


def test_images_that_the_graph_does_not_take_are_refused_by_size(file):
    with pytest.raises(ImageError, match="takes no images of 4 x 4"):
        FrozenEncoder(config(file), 6)(images(side=4))


def test_latents_from_files_have_no_encoder_to_open():
    encoder = FrozenEncoder(LatentFilesConfig(source="a service"), 6)
    with pytest.raises(CheckpointError, match="come from 'a service', an encoder that is not here"):
        encoder(images())


def test_a_range_must_rise():
    with pytest.raises(ConfigError, match=re.escape("image_range [1.0, 0.0] does not rise")):
        OnnxEncoderConfig(source="a.onnx", image_range=(1.0, 0.0))


def test_encoders_are_the_same_by_fingerprint_and_without_one_by_name():
    one = OnnxEncoderConfig(source="folder/a.onnx")
    assert same_encoder(one, OnnxEncoderConfig(source="a.onnx"))
    assert not same_encoder(one, OnnxEncoderConfig(source="b.onnx"))
    assert not same_encoder(one, replace(one, stride=16))
    assert not same_encoder(one, LatentFilesConfig(source="a.onnx"))
    known = replace(one, fingerprint=[1.0, 2.0])
    assert same_encoder(known, OnnxEncoderConfig(source="b.onnx", fingerprint=[1.0, 2.01]))
    assert not same_encoder(known, OnnxEncoderConfig(source="a.onnx", fingerprint=[1.0, -2.0]))


def test_latents_of_a_pipeline_are_taken_packed_or_not(file):
    scale = PipelineScale(offset=[float(i) for i in range(24)], factor=[1 + i / 10 for i in range(24)], packing=2)
    encoder = FrozenEncoder(config(file, pipeline=scale), 6)
    raw = encoder(images(side=32))
    packed = encoder.foreign(raw, "pipeline")
    assert packed.shape == (2, 24, 2, 2)
    torch.testing.assert_close(encoder.raw(packed, "pipeline"), raw)
    torch.testing.assert_close(encoder.raw(F.pixel_shuffle(packed, 2), "pipeline"), raw)
    assert torch.equal(encoder.raw(raw, "raw"), raw) and torch.equal(encoder.foreign(raw, "raw"), raw)
    with pytest.raises(ConfigError, match=r"have 16 channels. Accepted: 6, or 24 packed"):
        encoder.raw(torch.zeros(1, 16, 2, 2), "pipeline")
