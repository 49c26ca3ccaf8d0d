"""Models as folders and on the hub: saved, loaded, uploaded, with a card.

A folder is `config.json` + `model.safetensors` (`checkpoints`). On the hub there is a card beside them, `README.md`.
"""

from abc import ABC, abstractmethod
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import EvalResult, ModelCard, PyTorchModelHubMixin
from torch import Tensor, nn

from stepladder.cards import LIBRARY, TAGS, model_card
from stepladder.checkpoints import CONFIG_FILE, read_checkpoint, write_checkpoint
from stepladder.configs import structure, unstructure
from stepladder.errors import CheckpointError, ConfigError, brief
from stepladder.models import find_model
from stepladder.nn.blocks import channels_last
from stepladder.tokenizer_config import TokenizerConfig

__all__ = ["Pretrained"]


def _project_url(label: str) -> str | None:
    """An address that the installed distribution names; None if it names none."""
    try:
        named = metadata.metadata("stepladder").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        named = []
    return dict(line.split(", ", 1) for line in named).get(label)


class Pretrained(
    nn.Module,
    PyTorchModelHubMixin,
    ABC,
    library_name=LIBRARY,
    tags=list(TAGS),
    repo_url=_project_url("Repository"),
    docs_url=_project_url("Documentation"),
):
    """A module that is described by a `TokenizerConfig`."""

    config: TokenizerConfig

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What `save_pretrained` writes."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        model_card_kwargs: dict[str, Any] | None = None,
        config: object = None,
    ) -> None:
        """Writes `config.json` and `model.safetensors` to a folder; files that are there are replaced.

        Args:
            save_directory: Made if it is not there.
            dtype: What weights are stored as, float32 or float16; they are read back as float32. Rounding to float16
                keeps the fingerprint, so that latents of the one fit the other.
            model_card_kwargs: Of `generate_model_card`, for a card beside them; none without it.
            config: Not used: the hub client passes the tokenizer's own.

        Raises:
            ValueError: If the dtype is another one.
            OutputError: If a file cannot be written.
        """
        if dtype not in (torch.float32, torch.float16):
            raise ValueError(
                f"Weights cannot be stored as {dtype}. Accepted: torch.float32, torch.float16. Load them and call "
                "to_precision to compute in another precision."
            )
        folder = Path(save_directory)
        write_checkpoint(folder, unstructure(self.config), self.weights(), dtype=dtype)
        if model_card_kwargs is not None:
            self.generate_model_card(**model_card_kwargs).save(folder / "README.md")

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Uploads config, weights and card in one commit; the repository is made if it is not there.

        Args:
            repo_id: `owner/name` on the hub.
            model_card_kwargs: Of `generate_model_card`; by default a card without measured values.
            options: As of `huggingface_hub.ModelHubMixin.push_to_hub`: token, private, branch, commit_message ...

        Returns:
            Address of the commit.
        """
        return super().push_to_hub(repo_id, model_card_kwargs=model_card_kwargs or {"name": repo_id}, **options)

    def generate_model_card(
        self,
        *,
        name: str | None = None,
        text: str | None = None,
        license: str | None = None,
        measured: str = "",
        results: list[EvalResult] | None = None,
    ) -> ModelCard:
        """The card of a model: YAML header, what it is, how to use it, and what was measured.

        Args:
            name: What users load it by.
            text: A card that is written already, as it is.
            license: Identifier of the licence of the weights.
            measured: A table of measured values.
            results: The same for the header.
        """
        info = self._hub_mixin_info
        links = {"code": info.repo_url, "documentation": info.docs_url}
        made = text or model_card(
            self, self.config, name=name, license=license, measured=measured, results=results or [], links=links
        )
        return ModelCard(made)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name: str | Path,
        *,
        device: torch.device | str = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a model in evaluation mode.

        Args:
            name: An embedded name (`embedded_models()`), a folder, or a hub id `owner/name`.
            device: Where to put it.
            revision: Of a hub id: branch, tag or commit.
            token: For the hub; by default the one that is stored on this machine.
            cache_dir: Where what is fetched is kept; by default where the hub client keeps it.
            local_files_only: Whether to take what was fetched before, and ask nobody.

        Raises:
            CheckpointError: If there is no such model, or its files are damaged or of another format.
        """
        folder = find_model(
            name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        data, weights = read_checkpoint(folder)
        try:
            config = structure(data, TokenizerConfig, where=str(folder / CONFIG_FILE))
            with torch.device("meta"):
                model = cls(config)
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
        try:
            model.load_state_dict(weights, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"Weights in {folder} do not fit their config: {brief(error)}. Export the model again."
            ) from error
        return channels_last(model.to(device)).eval().requires_grad_(False)
