"""Weights in a checkpoint of versions before its own.

A run that is stopped between two barriers has groups in flight that older weights have drawn. The
resumed run draws them again by the same weights, so that its numbers are the straight run's.

    CHECKPOINT/older/00000006.arrow     tensors as `arrow.pack` has them, in Arrow's file format
"""

from pathlib import Path

import pyarrow as pa

FOLDER = "older"


def write(checkpoint: Path, version: int, weights: pa.Table) -> None:
    """Add the weights of a version to a checkpoint that is being written."""
    folder = checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    path = str(folder / f"{version:08d}.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, weights.schema) as writer:
        writer.write_table(weights)


def read(checkpoint: Path | None) -> dict[int, pa.Table]:
    """What `write` has added, by version, mapped from the files; nothing where it was not called.

    Raises ValueError for a file that is not Arrow's."""
    found: dict[int, pa.Table] = {}
    for path in sorted((checkpoint / FOLDER).glob("*.arrow")) if checkpoint else ():
        try:
            with pa.memory_map(str(path)) as file:
                found[int(path.stem)] = pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} holds no weights: {error}") from error
    return found
