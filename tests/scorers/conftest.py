import pytest

from tests.tiny import build_clip, build_dino


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> str:
    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory) -> str:
    return build_dino(tmp_path_factory.mktemp("dino"))
