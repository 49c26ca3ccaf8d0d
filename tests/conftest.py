"""What all tests share: the option that checks annotated types and shapes at run time."""

from importlib.util import find_spec
from pkgutil import iter_modules

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--typecheck",
        action="store_true",
        help="check every annotated type and shape of stepladder at run time (jaxtyping and beartype)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("typecheck"):
        from jaxtyping import install_import_hook

        spec = find_spec("stepladder")
        assert spec is not None
        parts = [module.name for module in iter_modules(spec.submodule_search_locations)]
        # Functions of the command line are called by typer, with a context of a class that it does not show.
        install_import_hook([f"stepladder.{part}" for part in parts if part != "cli"], "typechecking.check")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("typecheck"):
        untyped = [item for item in items if item.get_closest_marker("untyped")]
        config.hook.pytest_deselected(items=untyped)
        items[:] = [item for item in items if item not in untyped]
