"""What all tests share: the option that checks annotated types and shapes at run time."""

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

        install_import_hook("stepladder", "typechecking.check")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("typecheck"):
        untyped = [item for item in items if item.get_closest_marker("untyped")]
        config.hook.pytest_deselected(items=untyped)
        items[:] = [item for item in items if item not in untyped]
