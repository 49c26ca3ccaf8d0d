"""Training on the latents of an encoder that is no part of the model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("onnxruntime")
pytest.importorskip("pyarrow")

from frozen_fakes import CHANNELS, write_onnx_encoder
from stepladder import presets
from stepladder.bottlenecks import KLConfig
from stepladder.data import CodedImages, open_pairs, read_pair
from stepladder.encoders import FrozenEncoder, LatentFilesConfig, OnnxEncoderConfig
from stepladder.errors import CheckpointError, ConfigError, OutputError
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import TokenizerConfig
from stepladder.training import frozen
from stepladder.training.autoencoder import TokenizerObjective, train
from stepladder.training.cache import cache_latents
from stepladder.training.config import DistillConfig, LossConfig, RegressConfig, StartConfig
from stepladder.training.distillation import distill
from stepladder.training.start import make_tokenizer


@pytest.fixture
def encoder(tmp_path) -> Path:
    return write_onnx_encoder(tmp_path / "encoder.onnx")


def on(encoder: Path) -> TokenizerConfig:
    config = OnnxEncoderConfig(source=str(encoder), image_range=(0.0, 1.0))
    return replace(presets.tiny(), latent_channels=CHANNELS, encoder=config)


@pytest.fixture
def config(make_config, encoder):
    return make_config(tokenizer=on(encoder))


def cached(config, folder: Path):
    """The configuration of the same run on files, written once."""
    cache_latents(config, folder)
    data = replace(config.data, train=[str(folder / "train-*.parquet")], latents=True)
    if config.data.validation:
        data = replace(data, validation=[str(folder / "validation-*.parquet")])
    return replace(config, data=data)


def test_a_run_leaves_a_decoder_of_unit_latents_without_the_encoder(config, encoder, tmp_path):
    folder = train(config, tmp_path / "run")
    saved = Tokenizer.from_pretrained(folder)
    assert not [name for name in saved.state_dict() if name.startswith("encoder.")]
    assert saved.config.encoder.source == "encoder.onnx"  # no path of this machine
    assert len(saved.config.encoder.fingerprint) == CHANNELS
    saved.encoder.open(str(encoder))
    images = torch.cat([batch[None] for batch in _photographs(config)])
    latent = saved.encode(images).latent
    assert latent.mean(dim=(0, 2, 3)).abs().max() < 0.05
    torch.testing.assert_close(latent.std(dim=(0, 2, 3)), torch.ones(CHANNELS), atol=0.05, rtol=0)
    encoder.unlink()
    assert saved.decode(latent).shape == images.shape
    losses = [record["loss"] for record in read_records(tmp_path / "run" / "records.jsonl")]
    assert losses[-1] < losses[0]


def test_what_is_cached_is_what_training_would_encode_and_needs_no_encoder(config, encoder, tmp_path):
    own = make_tokenizer(config)
    on_files = cached(config, tmp_path / "cache")
    encoder.unlink()
    source = open_pairs(on_files.data.train)
    assert len(source) == 8 and [*source.fingerprints.values()] == [own.config.encoder.fingerprint]
    weight = own.bottleneck.scale
    for index in range(8):
        pair = read_pair(source, index, 8)
        torch.testing.assert_close(own.encoder(pair.image[None])[0], pair.latent, atol=2e-3, rtol=1e-3)
    other = make_tokenizer(on_files)
    assert other.config.encoder.fingerprint == own.config.encoder.fingerprint
    torch.testing.assert_close(other.bottleneck.scale.mean, weight.mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(other.bottleneck.scale.variance, weight.variance, atol=5e-3, rtol=1e-2)
    train(on_files, tmp_path / "run")


def test_each_pass_of_the_cache_holds_every_photograph_and_validation_images_too(config, photographs, tmp_path):
    data = replace(config.data, validation=[str(photographs)], validation_images=3, validation_size=32)
    seen = []
    files = cache_latents(
        replace(config, data=data), tmp_path, passes=2, batch=3, on_progress=lambda *values: seen.append(values)
    )
    assert [file.name for file in files] == ["train-00000.parquet", "validation-00000.parquet"]
    assert seen == [(16, 19), (19, 19)]
    source = open_pairs(str(files[0]))
    images = [read_pair(source, index, 8).image for index in range(16)]
    assert len({image.numpy().tobytes() for image in images[:8]}) == 8
    assert {image.numpy().tobytes() for image in images[:8]} == {image.numpy().tobytes() for image in images[8:]}
    assert len(open_pairs(str(files[1]))) == 3
    with pytest.raises(OutputError, match="exists already, and holds other crops than those of this run"):
        cache_latents(config, tmp_path)
    assert [file.name for file in cache_latents(config, tmp_path, force=True)] == ["train-00000.parquet"]
    assert [file.name for file in tmp_path.glob("*.parquet")] == ["train-00000.parquet"]  # nothing of before beside it


def test_an_interrupted_cache_goes_on_where_it_was(config, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("stepladder.training.cache._ROWS", 5)
    data = replace(config.data, validation=[str(photographs)], validation_images=3, validation_size=32)
    config = replace(config, data=data)
    whole = [file.read_bytes() for file in cache_latents(config, tmp_path / "whole", passes=2)]
    folder = tmp_path / "parts"

    def interrupt(done: int, _total: int) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_latents(config, folder, passes=2, on_progress=interrupt)
    (folder / ".0123.tmp.parquet").write_bytes(b"of a process that was killed")
    before = {file: file.stat().st_mtime_ns for file in sorted(folder.glob("train-*"))}
    assert len(before) == 2
    files = cache_latents(config, folder, passes=2)
    assert [file.read_bytes() for file in files] == whole
    assert {file: file.stat().st_mtime_ns for file in files[:2]} == before
    for other in (replace(config, seed=5), replace(config, tokenizer=on(write_onnx_encoder(tmp_path / "b", seed=1)))):
        with pytest.raises(OutputError, match=r"train-00000\.parquet exists already, and holds other crops than"):
            cache_latents(other, folder, passes=2)


def test_a_run_on_files_validates_on_files_and_resumes_bit_for_bit(config, photographs, tmp_path):
    data = replace(config.data, validation=[str(photographs)], validation_images=2, validation_size=32)
    on_files = replace(cached(replace(config, data=data), tmp_path / "cache"), grid_every=5)
    whole = train(on_files, tmp_path / "whole")
    assert read_records(tmp_path / "whole" / "records.jsonl")[-1]["validation_psnr_db"].keys() == {"initial", "1", "2"}
    train(on_files, tmp_path / "parts", stop_after=5)
    parts = train(on_files, tmp_path / "parts", resume=True)
    for one, other in zip(*(Tokenizer.from_pretrained(f).state_dict().values() for f in (whole, parts)), strict=True):
        assert torch.equal(one, other)


def test_latents_of_a_closed_encoder_train_a_decoder_too(config, tmp_path):
    on_files = cached(config, tmp_path / "cache")
    closed = LatentFilesConfig(source="a service")
    tokenizer = replace(on_files.tokenizer, encoder=closed)
    saved = Tokenizer.from_pretrained(train(replace(on_files, tokenizer=tokenizer), tmp_path / "run"))
    assert saved.config.encoder.source == "a service"
    assert saved.decode(torch.zeros(1, CHANNELS, 4, 4)).shape == (1, 3, 32, 32)


def test_a_second_phase_takes_the_statistics_of_the_first(config, encoder, tmp_path):
    first = train(config, tmp_path / "first")
    saved = Tokenizer.from_pretrained(first)
    start = StartConfig(encoder_from=str(first), decoder_from=str(first))
    second = make_tokenizer(replace(config, start=start, seed=5))
    assert second.fingerprint() == saved.fingerprint()
    assert torch.equal(second.bottleneck.scale.mean, saved.bottleneck.scale.mean)
    other = write_onnx_encoder(tmp_path / "other.onnx", seed=1)
    with pytest.raises(ConfigError, match=r"start.encoder_from: the encoder of .* has another configuration"):
        make_tokenizer(replace(config, start=start, tokenizer=on(other)))


@pytest.mark.parametrize("on_files", [False, True])
def test_a_second_phase_goes_on_without_the_first_and_measures_nothing_again(config, tmp_path, monkeypatch, on_files):
    config = cached(config, tmp_path / "cache") if on_files else config
    first = train(replace(config, steps=1), tmp_path / "first")
    config = replace(config, start=StartConfig(encoder_from=str(first), decoder_from=str(first)), seed=5, steps=4)
    whole = train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", stop_after=2)
    shutil.rmtree(tmp_path / "first")
    monkeypatch.setattr(FrozenEncoder, "measure_fingerprint", None)
    monkeypatch.setattr(frozen, "_measure_scale", None)
    parts = train(config, tmp_path / "parts", resume=True)
    for name in ("config.json", "model.safetensors"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_does_not_go_on_with_another_encoder_in_the_place_of_its_own(config, encoder, tmp_path):
    train(config, tmp_path / "run", stop_after=2)
    write_onnx_encoder(encoder, seed=1)
    with pytest.raises(CheckpointError, match=r"is another one than that of the model: its latent of the test image"):
        train(config, tmp_path / "run", resume=True)


def test_a_student_learns_from_files_and_from_the_encoder(config, encoder, tmp_path):
    on_files = cached(config, tmp_path / "cache")
    teacher = train(on_files, tmp_path / "teacher")
    common = {
        "teacher": str(teacher),
        "recipe": RegressConfig(teacher_steps=2, perceptual_weight=0.0),
        "steps": 2,
        "batch_size": 2,
        "grid_every": 0,
    }
    student = distill(DistillConfig(data=on_files.data, **common), tmp_path / "a")
    assert Tokenizer.from_pretrained(student).fingerprint() == Tokenizer.from_pretrained(teacher).fingerprint()
    other = distill(DistillConfig(data=config.data, encoder=str(encoder), **common), tmp_path / "b")
    assert Tokenizer.from_pretrained(other).steps_per_stage == 1


@pytest.mark.parametrize("channels", [CHANNELS, CHANNELS + 1])
def test_files_of_two_encoders_are_refused_in_every_run(config, channels, tmp_path):
    one = replace(cached(config, tmp_path / "one"), grid_every=5)
    encoder = on(write_onnx_encoder(tmp_path / "b.onnx", seed=1, channels=channels))
    two = cached(replace(config, tokenizer=replace(encoder, latent_channels=channels)), tmp_path / "two")
    teacher = str(train(replace(one, steps=1), tmp_path / "teacher"))
    how = "differs by [0-9]+%" if channels == CHANNELS else "has 7 channels instead of 6"
    text = rf"two/train-00000.parquet' holds latents of another encoder than '.*{{}}': that of the test image {how}"
    of_both = {
        "mixed": replace(one.data, train=[*one.data.train, *two.data.train]),
        "validated": replace(one.data, validation=two.data.train),
    }
    for name, data in of_both.items():
        with pytest.raises(ConfigError, match=text.format("one/train-00000.parquet")):
            train(replace(one, data=data), tmp_path / name)
        with pytest.raises(ConfigError, match=text.format("encoder.onnx")):
            distill(DistillConfig(teacher=teacher, data=data, steps=1, batch_size=2), tmp_path / f"{name}-student")
    without = replace(one, data=of_both["validated"], grid_every=0, steps=1)
    train(without, tmp_path / "without")  # validation files that are not read do not matter


def test_the_initial_estimate_learns_alone(config, tmp_path):
    objective = TokenizerObjective(
        make_tokenizer(config), LossConfig(target="initial", perceptual_weight=0.0), None, train_encoder=False
    )
    network = objective.tokenizer.decoder.network
    learning = {id(p) for group in objective.optimiser_groups() for p in group.parameters}
    assert learning == {id(p) for p in network.reader.parameters()}
    folder = train(replace(config, loss=LossConfig(target="initial", perceptual_weight=0.0)), tmp_path / "run")
    records = read_records(tmp_path / "run" / "records.jsonl")
    assert records[-1]["losses"]["initial"] < records[0]["losses"]["initial"]
    assert records[-1]["stage_residuals"] is None
    assert Tokenizer.from_pretrained(folder).decoder.network.networks[0].out.weight.abs().max() == 0


def test_a_decoder_without_layers_of_its_own_for_it_refuses_that_target():
    with pytest.raises(ConfigError, match=r"loss.target 'initial' does not fit a decoder"):
        TokenizerObjective(Tokenizer(presets.tiny_tokens()), LossConfig(target="initial"), None, train_encoder=False)


def test_a_batch_with_latents_is_not_encoded(config, encoder):
    tokenizer = make_tokenizer(config)
    objective = TokenizerObjective(tokenizer, LossConfig(perceptual_weight=0.0), None, train_encoder=False).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    pairs = CodedImages(images, tokenizer.encoder(images))
    one, _ = objective(images, 3)
    tokenizer.encoder = FrozenEncoder(replace(tokenizer.encoder.config, source="gone.onnx"), CHANNELS)
    other, _ = objective(pairs, 3)
    assert torch.equal(one, other)


def test_configurations_that_do_not_go_together_are_refused(config, make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"Bottleneck 'kl' does not fit a frozen encoder.*'plain'"):
        make_tokenizer(replace(config, tokenizer=replace(config.tokenizer, bottleneck=KLConfig())))
    with pytest.raises(ConfigError, match=r"encoder.kind 'conv' is part of the model"):
        cache_latents(make_config(), tmp_path / "a")
    on_files = cached(config, tmp_path / "b")
    with pytest.raises(ConfigError, match="have their latents already"):
        cache_latents(on_files, tmp_path / "c")
    crop = replace(config.data.crop, size=30)
    with pytest.raises(ConfigError, match="30 is not a multiple of 8"):
        cache_latents(replace(config, data=replace(config.data, crop=crop)), tmp_path / "d")
    with pytest.raises(ConfigError, match=r"data.latents is true, and the encoder is of kind 'conv'"):
        train(replace(on_files, tokenizer=presets.tiny()), tmp_path / "e")
    with pytest.raises(ConfigError, match=r"data.latents is true, and the encoder is of kind 'conv'"):
        start = StartConfig(principal_components=True)
        train(replace(on_files, tokenizer=presets.tiny(), start=start), tmp_path / "h")
    five = replace(on_files.tokenizer, latent_channels=5)
    with pytest.raises(ConfigError, match=r"have 6 channels. tokenizer.latent_channels is 5"):
        train(replace(on_files, tokenizer=five), tmp_path / "f")
    marked = replace(on_files.tokenizer.encoder, fingerprint=[1.0] * CHANNELS)
    with pytest.raises(ConfigError, match="holds latents of another encoder"):
        train(replace(on_files, tokenizer=replace(on_files.tokenizer, encoder=marked)), tmp_path / "g")


def read_records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _photographs(config):
    from stepladder.data import evaluation_images, open_source

    return [image for _, image in evaluation_images(open_source(config.data.train), size=32)]
