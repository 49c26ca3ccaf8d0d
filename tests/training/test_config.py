"""Configuration of a run: preset, then file, then overrides; every key and value checked."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from stepladder.errors import ConfigError
from stepladder.presets import PRESETS
from stepladder.training.config import dump, load_config, load_distill_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(tmp_path):
    """Loads a configuration of a preset and data, with changes of the file and overrides."""

    def load(*overrides, **changes):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"preset": "tiny", "data": {"train": ["photos"]}} | changes))
        return load_config(path, overrides, presets=PRESETS)

    return load


def test_overrides_go_above_the_file_and_the_file_above_the_preset(load):
    config = load("steps=9", "tokenizer.decoder.width=6", steps=7, batch_size=3, tokenizer={"latent_channels": 4})
    assert (config.steps, config.batch_size) == (9, 3)
    assert (config.tokenizer.latent_channels, config.tokenizer.decoder.width) == (4, 6)
    assert config.tokenizer.encoder == PRESETS["tiny"]().encoder


def test_a_file_may_be_toml(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        'preset = "tiny"\n[data]\ntrain = ["photos"]\n[data.crop]\nsize = 64\n[optimiser]\nlearning_rate = 1\n'
    )
    config = load_config(path, presets=PRESETS)
    assert config.data.crop.size == 64
    assert config.optimiser.learning_rate == 1.0


def test_values_of_overrides_are_json_or_else_text(load):
    config = load(
        'data.train=["a b", "c"]',
        "loss.target=velocity",
        "compile=true",
        "start.encoder_from=null",
        "optimiser.betas=[0.5, 0.6]",
        "tokenizer.description=a=b",
        'tokenizer.bottleneck={"kind": "kl", "weight": 0.5}',
    )
    assert config.data.train == ["a b", "c"]
    assert config.loss.target == "velocity"
    assert config.compile is True
    assert config.start.encoder_from is None
    assert config.optimiser.betas == (0.5, 0.6)
    assert config.tokenizer.description == "a=b"
    assert config.tokenizer.bottleneck.weight == 0.5


def test_what_is_dumped_is_a_file_that_gives_the_same_configuration(load, tmp_path):
    config = load("steps=9", 'tokenizer.bottleneck={"kind": "kl"}', "optimiser.betas=[0.5, 0.75]")
    path = tmp_path / "dumped.json"
    path.write_text(dump(config))
    assert load_config(path, presets={}) == config


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_accepted(recipe):
    distils = "teacher" in tomllib.loads(recipe.read_text("utf-8"))
    config = load_distill_config(recipe) if distils else load_config(recipe, presets=PRESETS)
    assert config.steps > 0


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("stepz=3", r"Unknown key 'stepz'\. Accepted: optimiser, .*\. Did you mean 'steps'\?"),
        ("optimiser.learning_rat=1", r"Unknown key 'learning_rat' in 'optimiser'\. .* Did you mean 'learning_rate'\?"),
        ("data.crop.sise=3", r"Unknown key 'sise' in 'data\.crop'\. Accepted: size, .* Did you mean 'size'\?"),
        ("nothing.like.it=3", r"Unknown key 'nothing'\. .* Remove it\."),
        ("steps=many", r"Value of 'steps' does not fit: 'many' is not of type int\. Write a value of that type\."),
        ("steps=1.5", r"Value of 'steps' does not fit: 1\.5 is not of type int"),
        ("steps=true", r"Value of 'steps' does not fit: True is not of type int"),
        ("compile=1", r"Value of 'compile' does not fit: 1 is not of type bool"),
        (
            "data.train=photos",
            r"Value of 'data\.train' does not fit: 'photos' is not a list\. Write it in square brackets",
        ),
        ("data.train=[1]", r"Value of 'data\.train' does not fit: 1 is not of type str"),
        ("optimiser.betas=[0.9]", r"Value of 'optimiser\.betas' does not fit: \[0\.9\] is not a list of 2 values"),
        ("data=photos", r"Value of 'data' does not fit: 'photos' is no table\. Write a table with keys of: train, "),
        ("tokenizer=photo", r"Value of 'tokenizer' is 'photo'\. Accepted: a table of keys"),
        ("precision=fp16", r"Value of 'precision' does not fit: 'fp16' is unknown\. Accepted: 'no', 'bf16'"),
        (
            "tokenizer.bottleneck.kind=pq",
            r"'tokenizer\.bottleneck' does not fit: its kind is 'pq'\. Accepted: 'plain', 'kl', 'fsq', 'vq'",
        ),
        (
            "tokenizer.encoder=5",
            r"Value of 'tokenizer\.encoder' does not fit: 5 is no table of keys\. Accepted: 'conv'",
        ),
        (
            "tokenizer.encoder.kind=vit",
            r"Value of 'tokenizer\.encoder' does not fit: its kind is 'vit'\. Accepted: 'conv', 'mmdit'",
        ),
        ("tokenizer.encoder.stride=12", r"Encoder stride 12 is no power of two\. Pass 4, 8, 16, 32 or 64\."),
        ("tokenizer.ladder.num_stages=0", r"Number of stages 0 is outside 1 to 8"),
        ("tokenizer.ladder.gamma=0.5", r"gamma 0\.5 is outside \(0, 1/3\]"),
        ("tokenizer.decoder.embedding_width=15", r"embedding_width 15 is odd\. Pass an even number"),
        ("preset=foto", r"Unknown preset 'foto'\. Accepted: photo, photo-base, .*\. Choose one"),
        ("preset=[]", r"Unknown preset '\[\]'"),
        ("data.train=[]", r"data\.train is empty\. Name folders, tar shards or Parquet files"),
        ("data.workers=-1", r"data\.workers -1 is less than 0\. Pass 0 to 1,024"),
        ("steps=0", r"steps 0 is less than 1\. Pass 1 or more"),
        ("seed=-1", r"seed -1 is less than 0"),
        ("grid_every=-1", r"grid_every -1 is less than 0"),
        ("ema_decay=1", r"ema_decay 1\.0 is outside \[0, 1\)"),
        ("optimiser.learning_rate=0", r"Learning rate 0\.0 is not positive"),
        ("optimiser.learning_rate=NaN", r"Learning rate nan is not positive"),
        ("optimiser.clip_norm=0", r"Clip norm 0\.0 is not positive"),
        ("optimiser.decay_fraction=2", r"Decay fraction 2\.0 is outside \[0, 1\]"),
        ("optimiser.betas=[0.9, 1.0]", r"Betas \[0\.9, 1\.0\] are not in \[0, 1\)"),
        ("optimiser.weight_decay=-1", r"optimiser\.weight_decay -1\.0 is less than 0"),
        (
            "optimiser.schedule=step",
            r"'optimiser\.schedule' does not fit: 'step' is unknown\. Accepted: 'linear', 'cos",
        ),
        ("loss.time_distribution=normal", r"'normal' is unknown\. Accepted: 'uniform', 'logit-normal'"),
        ("loss.time_scale=0", r"loss\.time_scale 0\.0 is not positive\. Usual value: 1"),
        ("loss.time_location=Infinity", r"loss\.time_location inf is no finite number"),
        ("loss.time_shift=-1", r"loss\.time_shift -1\.0 is not positive"),
        ("loss.weighting=snr", r"'snr' is unknown\. Accepted: 'none', 'sigmoid'"),
        ("loss.weighting_bias=NaN", r"loss\.weighting_bias nan is outside \[-20, 20\]"),
        ("loss.context_dropout=1.5", r"loss\.context_dropout 1\.5 is outside \[0, 1\]\. Usual value: 0\.1"),
        ("tokenizer.guidance.scale=-2", r"Guidance scale -2\.0 is negative or no number"),
        ("loss.perceptual_weight=NaN", r"loss\.perceptual_weight nan is too large or no number"),
        ("start.train_encoder=false", r"start\.train_encoder is false without weights\. Set start\.encoder_from"),
        ("steps", r"Override 'steps' is not of the form a\.b=value\. Write for example"),
        ("=3", r"Override '=3' is not of the form a\.b=value"),
        ("preset.a=3", r"Override 'preset\.a=3' reaches into 'preset', which is a value"),
    ],
)
def test_what_is_not_accepted_is_one_line_that_says_what_is(load, override, text):
    with pytest.raises(ConfigError, match=text) as caught:
        load(override)
    assert "\n" not in str(caught.value)


SIZES = {
    "batch_size": "1 to 65,536",
    "accumulate": "1 to 65,536",
    "data.validation_images": "1 to 65,536",
    "data.validation_size": "1 to 16,384",
    "data.workers": "0 to 1,024",
    "data.crop.size": "1 to 16,384",
    "data.crop.crops_per_image": "1 to 65,536",
    "data.stream.lanes": "1 to 1,000,000",
    "data.stream.buffer": "1 to 1,000,000",
}


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", [10**9, 10**18, -1])
def test_a_size_that_would_fill_the_machine_is_refused_with_its_bound(load, key, value):
    with pytest.raises(ConfigError, match=SIZES[key]) as caught:
        load(f"{key}={value}")
    assert str(value) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ("batch_size=65536", "data.crop.size=1024"),
            r"batch_size 65536 and data\.crop\.size 1024 take 768 GiB as floats\. Accepted: up to 48 GiB\. Pass "
            r"batch_size of up to 4,096, or a smaller side\.$",
        ),
        (
            ("data.validation_images=20", "data.validation_size=16384"),
            r"take 60 GiB.* data\.validation_images of up to 16,",
        ),
    ],
)
def test_sizes_that_fill_it_only_together_are_refused(load, overrides, text):
    with pytest.raises(ConfigError, match=text):
        load(*overrides)


def test_latents_beside_images_are_no_stream(load):
    with pytest.raises(ConfigError, match=r"data\.latents is true, and data\.stream is set"):
        load(data={"train": ["photos"], "latents": True, "stream": {}})


def test_the_message_names_the_file(load):
    with pytest.raises(ConfigError, match=r"config\.json: Unknown key"):
        load(stepz=3)


def test_missing_keys_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"preset": "tiny"}')
    with pytest.raises(ConfigError, match=r"Key 'data' is missing\. It has no default\. Add it\."):
        load_config(path, presets=PRESETS)
    path.write_text('{"data": {"train": ["photos"]}}')
    with pytest.raises(ConfigError, match=r"Key 'tokenizer' is missing\."):
        load_config(path, presets=PRESETS)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("c.json", b"{", "is not valid TOML or JSON: .* Mend it"),
        ("c.json", b"[" * 100_000, r"is nested too deeply\. Tables go three deep\. Mend it there\.$"),
        ("c.toml", b"a = " + b"[" * 100_000, r"is nested too deeply"),
        ("c.toml", b"a = ", "is not valid TOML or JSON"),
        ("c.toml", b"\xff\xfe", "is not valid TOML or JSON"),
        ("c.json", b"[1]", "is not a table of keys"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        load_config(tmp_path / name, presets=PRESETS)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read config .*no\.toml: No such file"):
        load_config(tmp_path / "no.toml", presets=PRESETS)


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "no")])
def test_automatic_precision_goes_by_the_device(monkeypatch, fast, precision):
    from stepladder.training import hardware
    from stepladder.training.config import RunConfig

    monkeypatch.setattr(hardware, "has_fast_bfloat16", lambda device: fast)
    assert hardware.precision_on(torch.device("cpu"), RunConfig(precision="auto")) == precision
    assert hardware.precision_on(torch.device("cpu"), RunConfig(precision="no")) == "no"
