"""Tensors as Arrow tables: what trajectories, conditions and weights travel in.

Every column is a `fixed_shape_tensor`, every table has one chunk, so that a reader gets a tensor
over the table's own memory (a shared-memory mapping, under Ray) and a row slice ships only its
rows. bfloat16, which Arrow lacks, travels as int16. A field's metadata `dtype` is the torch dtype;
the schema's metadata `percent_ray` is JSON.

| trajectory, K rows    | row shape      | dtype   | what                                          |
|-----------------------|----------------|---------|-----------------------------------------------|
| latents               | [S+1, C, H, W] | storage | SDE step i goes from row i to row i + 1       |
| means                 | [S, C, H, W]   | storage | mu of the drawing policy                      |
| final                 | [C, H, W]      | storage | latents at sigma 0                            |
| clean_next (optional) | [N, C, H, W]   | storage | clean predictions from the drawn latents      |
| clean_mean (optional) | [N, C, H, W]   | storage | clean predictions from the means              |
| log_probs             | [S]            | float32 | log pi_old of each SDE step                   |

    {"schema": "trajectory", "version": 1, "steps": [start, stop]}

Storage is float32, float16 or bfloat16, column by column.

The forward process has no steps, [0, 0], and keeps `final` alone.

| tensors, 1 row | row shape | dtype | what                                                      |
|----------------|-----------|-------|-----------------------------------------------------------|
| any names      | any       | any   | a condition (every tensor [1, ...]), or published weights |

    {"schema": "tensors", "version": 1}
"""

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Float32
from torch import Tensor

VERSION = 1
PIECE = 2**22
"""Bytes that one thread hashes at a time."""
STORAGE = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (*STORAGE, torch.float64, torch.int64, torch.int32, torch.int16, torch.uint8)
}


def trajectory_table(
    *,
    latents: Float[Tensor, "K S+1 C H W"],
    means: Float[Tensor, "K S C H W"],
    log_probs: Float32[Tensor, "K S"],
    final: Float[Tensor, "K C H W"],
    steps: range,
    clean_next: Float[Tensor, "K N C H W"] | None = None,
    clean_mean: Float[Tensor, "K N C H W"] | None = None,
) -> pa.Table:
    """The trajectory table of one group, over the memory of the tensors where they are on the CPU.

    Raises ValueError for shapes that do not belong together and for other dtypes.
    """
    images, count = log_probs.shape
    columns = {"latents": latents, "means": means, "final": final}
    if clean_next is not None and clean_mean is not None:
        columns |= {"clean_next": clean_next, "clean_mean": clean_mean}
    for name, tensor in columns.items():
        if len(tensor) != images or tensor.dtype not in STORAGE:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, expected a floating dtype of at "
                f"most 32 bits and {images} rows, as log_probs has"
            )
    if (latents.shape[1], means.shape[1], len(steps)) != (count + 1, count, count):
        raise ValueError(
            f"latents have {latents.shape[1]} steps, means {means.shape[1]}, the range {steps} "
            f"{len(steps)}; expected {count + 1}, {count}, {count} as log_probs has {count}"
        )
    if log_probs.dtype != torch.float32:
        raise ValueError(f"log_probs are {log_probs.dtype}, expected torch.float32")
    return _table(columns | {"log_probs": log_probs}, "trajectory", steps=[steps.start, steps.stop])


def images_table(final: Float[Tensor, "K C H W"]) -> pa.Table:
    """The trajectory table of one group without steps. Raises ValueError for a dtype that is no
    storage dtype."""
    if final.dtype not in STORAGE:
        raise ValueError(f"final is {final.dtype}, expected a floating dtype of at most 32 bits")
    return _table({"final": final}, "trajectory", steps=[0, 0])


def steps(table: pa.Table) -> range:
    """The SDE steps of a trajectory table. ValueError for any other table."""
    found = metadata(table, "trajectory").get("steps")
    if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int for n in found):
        raise ValueError(f"a trajectory table with steps {found!r}, expected [start, stop]")
    return range(*found)


def column(table: pa.Table, name: str) -> Tensor:
    """The column as a tensor [rows, ...] over the table's memory, in its original dtype.

    Never write to it: the memory may be a mapping that other processes read. Raises ValueError
    where the column is missing or in more than one chunk.
    """
    metadata(table)
    return _column(table, name)


def pack(tensors: Mapping[str, Tensor]) -> pa.Table:
    """One row, one column a tensor of any shape, over the memory of those on the CPU.

    Raises ValueError for a dtype that is not in `DTYPES`, and for empty tensors.
    """
    return _table({name: tensor.unsqueeze(0) for name, tensor in tensors.items()}, "tensors")


def unpack(table: pa.Table) -> dict[str, Tensor]:
    """The tensors of `pack`, over the table's memory: clone before writing. ValueError for any
    other table."""
    metadata(table, "tensors")
    return {name: _column(table, name)[0] for name in table.column_names}


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, dtypes, shapes and bytes, whatever the order of the names.

    SHA-256, for which processors have instructions, over the SHA-256 of every piece of `PIECE`
    bytes, on as many threads as torch has. Shapes come first and say how many pieces follow, so
    that two sets of tensors with one hash would be two texts with one SHA-256; its first 128 bits
    are kept.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for name in sorted(tensors):
            tensor = tensors[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            data = tensor.reshape(-1).view(torch.uint8).numpy().data
            pieces = (data[first : first + PIECE] for first in range(0, len(data), PIECE))
            for piece in threads.map(_sha256, pieces):
                digest.update(piece)
    return digest.hexdigest()[:32]


def _sha256(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest()


def _table(columns: Mapping[str, Tensor], schema: str, **metadata: Any) -> pa.Table:
    """Each column [rows, ...]."""
    fields, arrays = [], []
    for name, tensor in columns.items():
        array = _array(name, tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        fields.append(pa.field(name, array.type, nullable=False, metadata={"dtype": dtype}))
        arrays.append(array)
    text = json.dumps({"schema": schema, "version": VERSION} | metadata)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, {"percent_ray": text}))


def _array(name: str, tensor: Tensor) -> pa.ExtensionArray:
    if tensor.dtype not in DTYPES.values() or not tensor.numel():
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}; Arrow takes non-empty tensors of "
            f"{', '.join(DTYPES)}"
        )
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.view(torch.int16)
    flat = pa.array(values.reshape(-1).numpy())
    shape = list(tensor.shape[1:])
    rows = pa.FixedSizeListArray.from_arrays(flat, math.prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), rows)


def _column(table: pa.Table, name: str) -> Tensor:
    if name not in table.column_names:
        raise ValueError(f"no column {name!r}; the table has {', '.join(table.column_names)}")
    chunks = table.column(name)
    if chunks.num_chunks != 1:
        raise ValueError(
            f"column {name!r} is in {chunks.num_chunks} chunks; combine_chunks() first"
        )
    rows = chunks.chunk(0)
    field = table.schema.field(name)
    dtype = DTYPES.get((field.metadata or {}).get(b"dtype", b"").decode())
    if dtype is None or not isinstance(field.type, pa.FixedShapeTensorType) or rows.null_count:
        raise ValueError(
            f"column {name!r} is {field.type}, expected whole tensors of a known dtype"
        )
    # DLPack rather than numpy: torch warns of memory that numpy calls read-only.
    flat = torch.from_dlpack(rows.storage.flatten())
    return flat.view(dtype).reshape(len(rows), *rows.type.shape)


def metadata(table: pa.Table, schema: str | None = None) -> dict[str, Any]:
    """The schema's JSON; ValueError for a table of another schema or version."""
    text = (table.schema.metadata or {}).get(b"percent_ray")
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = None
    about: dict[str, Any] = found if isinstance(found, dict) else {}
    if about.get("version") != VERSION or schema not in (None, about.get("schema")):
        raise ValueError(
            f"expected a {schema or 'percent_ray'} table of version {VERSION}, got "
            f"{about.get('schema', 'a foreign table')} of version {about.get('version')}"
        )
    return about
