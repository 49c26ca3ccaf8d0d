"""What all tests share: the option that checks annotated shapes at run time."""

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
