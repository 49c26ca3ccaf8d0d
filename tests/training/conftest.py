"""A few smooth images on disk, and a tiny run on them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

pytest.importorskip("accelerate")

from distillation_fakes import RECIPES, make_teacher
from stepladder import presets
from stepladder.data import CropConfig
from stepladder.images import save_png, to_pil
from stepladder.training import hardware
from stepladder.training.config import DataConfig, DistillConfig, LossConfig, OptimiserConfig, TrainConfig

SIDE = 32


def smooth_images(count: int, side: int = SIDE, seed: int = 0) -> torch.Tensor:
    """Low frequencies and a little grain, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator) * 1.6 - 0.8
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")
    return (images + 0.01 * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 images of 32 x 32."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, image in enumerate(smooth_images(8)):
        save_png(to_pil(image), folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def make_config(photographs: Path) -> Callable[..., TrainConfig]:
    """The configuration of a tiny run on whole images, with changes."""
    base = TrainConfig(
        tokenizer=presets.tiny(),
        data=DataConfig(train=[str(photographs)], crop=CropConfig(size=SIDE, min_scale=1.0, max_scale=1.0, flip=False)),
        loss=LossConfig(perceptual_weight=0.0),
        optimiser=OptimiserConfig(learning_rate=2e-3, warmup_steps=2),
        steps=10,
        batch_size=4,
        log_every=1,
        grid_every=0,
        save_every=5,
    )

    def make(**changes: Any) -> TrainConfig:
        return replace(base, **changes)

    return make


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders of teachers by number of stages."""
    folder = tmp_path_factory.mktemp("teachers")
    for stages in (1, 2, 3):
        make_teacher(stages).save_pretrained(folder / str(stages))
    return {stages: folder / str(stages) for stages in (1, 2, 3)}


@pytest.fixture(scope="session")
def make_distillation(make_config, teachers) -> Callable[..., DistillConfig]:
    base = make_config()

    def make(recipe: str = "adversarial", stages: int = 3, **changes) -> DistillConfig:
        shared = {"data": base.data, "optimiser": OptimiserConfig(warmup_steps=2), "steps": 4, "batch_size": 4}
        shared |= {"log_every": 1, "grid_every": 0, "save_every": 2}
        return DistillConfig(teacher=str(teachers[stages]), recipe=RECIPES[recipe], **(shared | changes))

    return make


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(hardware, "peak_flops", lambda device, dtype: 1e9)
        yield


@pytest.fixture
def gradients() -> Iterator[list[list[torch.Tensor]]]:
    """Filled with the gradients of every optimiser step that is taken."""
    steps: list[list[torch.Tensor]] = []

    def keep(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        steps.append([p.grad.detach().clone() for p in parameters])

    handle = register_optimizer_step_pre_hook(keep)
    yield steps
    handle.remove()
