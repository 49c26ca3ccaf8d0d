"""A tokenizer, and a server of it."""

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import pipeline_fakes as fakes
from server_fakes import running
from stepladder.serve.app import ServeConfig
from stepladder.serve.protocol import Limits


@pytest.fixture(scope="package")
def tokenizer():
    return fakes.tokenizer(16, 8)


@pytest.fixture(scope="package")
def address(tokenizer):
    with running(tokenizer, ServeConfig(name="tiny", limits=Limits(side=256, images=4))) as found:
        yield found


@pytest.fixture
def latent():
    return torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
