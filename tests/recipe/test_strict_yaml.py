import pytest
import yaml

from percent_ray.recipe import strict_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("12", 12), ("-3", -3), ("+3", 3), ("0", 0), ("1e-4", 1e-4), ("1.", 1.0), ("-.5", -0.5)),
        *(("2E+3", 2000.0), (".inf", float("inf")), ("true", True), ("off", False), ("~", None)),
        *((word, word) for word in ("010", "1:30", "0x1f", "1_0", "00.5", "2026-01-01", "=", "1e")),
        ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}),
        ("{<<: {a: 1}, b: 2}", {"a": 1, "b": 2}),
    ],
)
def test_values_are_what_they_look_like(text, value):
    read = strict_yaml.load(text)
    assert read == value
    assert type(read) is type(value)


def test_what_is_dumped_is_read_back():
    for value in (1e-8, 1.5e300, -2.0, 7, "010", "1:30", "no", "", None, True, [0.1, "a"]):
        assert strict_yaml.load(yaml.safe_dump(value)) == value


def test_a_file_of_another_encoding_is_told_with_its_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert strict_yaml.read(path) == {"a": 1}
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ValueError, match=r"x\.yaml: line 2: byte 0xe9 is not UTF-8"):
        strict_yaml.read(path)
