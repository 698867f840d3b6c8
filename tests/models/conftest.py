from pathlib import Path

import pytest

from tests.tiny import build_sd3, load_sd3


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny pipeline without T5."""
    return Path(build_sd3(tmp_path_factory.mktemp("sd3")))


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    return Path(build_sd3(tmp_path_factory.mktemp("sd3_t5"), t5=True))


@pytest.fixture(scope="session")
def pipeline(folder):
    """What to compare with."""
    return load_sd3(folder)
