import os

import pytest

from percent_ray import files


def test_what_was_there_stays_until_the_new_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "recipe.yaml"
    files.write(path, "é")
    assert path.read_bytes() == "é".encode()

    def full(*_):
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            files.write(path, b"other")
    assert path.read_bytes() == "é".encode()
    files.write(path, b"other")
    assert [(p.name, p.read_bytes()) for p in path.parent.iterdir()] == [("recipe.yaml", b"other")]
