import io
import pickle
import warnings

import pyarrow as pa
import pytest
import torch

from percent_ray.data import arrow

STORAGE = [torch.float32, torch.float16, torch.bfloat16]


def group(dtype=torch.float32, *, images=4, steps=3, clean=False):
    source = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=source)

    tensors = {
        "latents": draw(images, steps + 1, 2, 3, 5).to(dtype),
        "means": draw(images, steps, 2, 3, 5).to(dtype),
        "log_probs": draw(images, steps),
        "final": draw(images, 2, 3, 5).to(dtype),
    }
    if clean:
        tensors |= {
            name: draw(images, 2, 2, 3, 5).to(dtype) for name in ("clean_next", "clean_mean")
        }
    return tensors


def table(dtype=torch.float32, **kwargs):
    return arrow.trajectory_table(steps=range(1, 4), **group(dtype, **kwargs))


def through_ipc(table):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@pytest.mark.parametrize("dtype", STORAGE)
def test_images_of_the_forward_process_come_back_bit_for_bit_and_have_no_steps(dtype):
    final = group(dtype)["final"]
    found = through_ipc(arrow.images_table(final))
    assert torch.equal(arrow.column(found, "final"), final)
    assert (found.num_rows, found.column_names) == (4, ["final"])
    assert arrow.steps(found) == range(0)
    with pytest.raises(ValueError, match=r"final is torch\.float64"):
        arrow.images_table(final.double())
    with pytest.raises(ValueError, match="expected a trajectory table"):
        arrow.steps(arrow.pack({"final": final}))


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("dtype", STORAGE)
def test_a_trajectory_comes_back_bit_for_bit(dtype, clean):
    tensors = group(dtype, clean=clean)
    for found in (table(dtype, clean=clean), through_ipc(table(dtype, clean=clean))):
        assert arrow.steps(found) == range(1, 4)
        assert found.num_rows == 4
        for name, tensor in tensors.items():
            column = arrow.column(found, name)
            assert column.dtype == tensor.dtype
            assert torch.equal(column, tensor)


def test_writing_and_reading_copy_nothing():
    tensors = group(torch.bfloat16)
    built = arrow.trajectory_table(steps=range(3), **tensors)
    for name, tensor in tensors.items():
        assert arrow.column(built, name).data_ptr() == tensor.data_ptr()
        assert built[name].num_chunks == 1


def test_reading_does_not_warn():
    built = through_ipc(table())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrow.column(built, "latents")


def test_a_view_outlives_its_table():
    view = arrow.column(through_ipc(table()), "latents")
    assert torch.equal(view, group()["latents"])


def test_a_slice_ships_and_reads_only_its_rows():
    built = arrow.trajectory_table(
        latents=torch.arange(512.0 * 2 * 64).reshape(512, 2, 1, 8, 8),
        means=torch.zeros(512, 1, 1, 8, 8),
        log_probs=torch.zeros(512, 1),
        final=torch.zeros(512, 1, 8, 8),
        steps=range(1),
    )
    row = built.slice(7, 1)
    assert torch.equal(arrow.column(row, "latents"), arrow.column(built, "latents")[7:8])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)
    assert len(sink.getvalue()) < built.nbytes / 50


def test_pickling_keeps_values_and_metadata():
    found = pickle.loads(pickle.dumps(table(torch.bfloat16)))
    assert arrow.steps(found) == range(1, 4)
    assert torch.equal(arrow.column(found, "means"), group(torch.bfloat16)["means"])


def test_pack_takes_any_shape_and_dtype():
    tensors = {name: torch.ones(3).to(dtype) for name, dtype in arrow.DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "matrix": torch.randn(4, 6).t()}
    found = arrow.unpack(through_ipc(arrow.pack(tensors)))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_pack_of_a_parameter():
    weight = torch.nn.Parameter(torch.randn(2, 2))
    found = arrow.unpack(arrow.pack({"weight": weight}))["weight"]
    assert torch.equal(found, weight.detach())
    assert not found.requires_grad


def test_checksum_sees_names_shapes_dtypes_and_bytes_but_not_order():
    tensors = {"a": torch.arange(6.0), "b": torch.tensor(1.0)}
    reference = arrow.checksum(tensors)
    assert arrow.checksum(dict(reversed(tensors.items()))) == reference
    assert arrow.checksum(arrow.unpack(arrow.pack(tensors))) == reference
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"].reshape(2, 3), "b": tensors["b"]},
        {"a": tensors["a"].view(torch.int32), "b": tensors["b"]},
        {"a": tensors["a"].nextafter(torch.tensor(9.0)), "b": tensors["b"]},
    ]
    assert len({arrow.checksum(other) for other in others} | {reference}) == 5


def test_checksum_of_non_contiguous_is_that_of_its_values():
    matrix = torch.randn(3, 5)
    assert arrow.checksum({"m": matrix.t()}) == arrow.checksum({"m": matrix.t().contiguous()})


def test_reading_the_wrong_table_is_one_line():
    trajectory, packed = table(), arrow.pack({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="expected a trajectory table of version 1, got tensors"):
        arrow.steps(packed)
    with pytest.raises(ValueError, match="expected a tensors table of version 1, got trajectory"):
        arrow.unpack(trajectory)
    with pytest.raises(ValueError, match="no column 'clean_next'; the table has latents, means"):
        arrow.column(trajectory, "clean_next")
    with pytest.raises(ValueError, match="got a foreign table of version None"):
        arrow.column(pa.table({"a": [1]}), "a")
    old = trajectory.replace_schema_metadata(
        {"percent_ray": '{"schema": "trajectory", "version": 0}'}
    )
    with pytest.raises(ValueError, match="of version 0"):
        arrow.steps(old)
    with pytest.raises(ValueError, match="is in 2 chunks; combine_chunks"):
        arrow.column(pa.concat_tables([trajectory, trajectory]), "latents")


def test_combined_chunks_can_be_read():
    both = pa.concat_tables([table(), table()]).combine_chunks()
    assert torch.equal(arrow.column(both, "final")[4:], group()["final"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final": torch.zeros(3, 2, 3, 5)}, "final is torch.float32 .* 4 rows"),
        ({"means": torch.zeros(4, 3, 2, 3, 5).double()}, "means is torch.float64"),
        ({"latents": torch.zeros(4, 3, 2, 3, 5)}, "latents have 3 steps"),
        ({"log_probs": torch.zeros(4, 3).half()}, "log_probs are torch.float16"),
        ({"steps": range(2)}, r"the range range\(0, 2\) 2"),
    ],
)
def test_tensors_that_do_not_belong_together(change, message):
    with pytest.raises(ValueError, match=message):
        arrow.trajectory_table(**({"steps": range(3)} | group() | change))


def test_pack_refuses_what_arrow_cannot_hold():
    with pytest.raises(ValueError, match=r"mask is torch\.bool"):
        arrow.pack({"mask": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="non-empty"):
        arrow.pack({"none": torch.ones(0)})
