"""Reading files: what is refused and why, and YAML read as operators mean it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgl_router.config import ConfigError
from sgl_router.config.files import MAX_FILE_BYTES, read_mapping


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_mapping(path)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", "", "FILE: the file is empty: expected at least the keys models and discovery"),
        ("c.yaml", "# nothing\n", "FILE: the file is empty: expected at least the keys models and discovery"),
        ("c.toml", "", "FILE: the file is empty: expected at least the keys models and discovery"),
        ("c.yaml", "[1]", "FILE: expected a mapping of sections, got a list"),
        ("c.yaml", "text", "FILE: expected a mapping of sections, got 'text'"),
        ("c.json", "{}", "FILE: expected the extension .yaml, .yml or .toml, got '.json'"),
        ("config", "{}", "FILE: expected the extension .yaml, .yml or .toml, got none"),
        ("c.yaml", "[" * 5000, "FILE: not valid YAML: nested too deeply"),
    ],
)
def test_refused_with_the_reason(name: str, content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert refusal(file) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", "a: 1\nb: [", "(line 2, column 5)"),
        ("c.yaml", "a: 1\n---\nb: 2", "expected a single document"),
        ("c.yaml", "a: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("c.yaml", "? [a]\n: 1", "found unhashable key (line 1, column 3)"),
        ("c.toml", "a = 1\na = 2", "Cannot overwrite a value"),
        ("c.toml", "a =", "(at end of document)"),
        ("c.toml", "a = " + "[" * 5000, "nested"),
    ],
)
def test_refused_in_the_parsers_words(name: str, content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    (line,) = refusal(file).splitlines()
    assert line.startswith(f"FILE: not valid {name[2:].upper()}: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("server:\n  port: 1\n  host: x\n  port: 2\n", "server.port: key given twice, on lines 2 and 4"),
        ("server: {port: 1, port: 2}", "server.port: key given twice, on line 1"),
        ("models:\n- id: a\n- id: b\n  'id': c", "models[1].id: key given twice, on lines 3 and 4"),
    ],
)
def test_keys_given_twice(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    assert refusal(file) == f"{message}: expected each key once"


def test_every_key_given_twice_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &x {b: 1, b: 2}\na: *x\nc: 1\nc: 2\nc: 3\n")
    assert [line.partition(":")[0] for line in refusal(file).splitlines()] == ["a.b", "a", "c", "c"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert refusal(folder) == "FILE: is a directory, expected a file"
    assert refusal(tmp_path / "none.yaml") == "FILE: no such file"
    (tmp_path / "c.yaml").write_bytes(b"a: \xff")
    assert refusal(tmp_path / "c.yaml") == "FILE: is not UTF-8 (byte 3)"
    assert refusal(tmp_path / "c.yaml" / "d.yaml") == "FILE: cannot be read: Not a directory"
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert refusal(tmp_path / "large.yaml") == f"FILE: is larger than {MAX_FILE_BYTES} bytes"
    (tmp_path / "control.yaml").write_bytes(b"a: \x07")
    assert refusal(tmp_path / "control.yaml").startswith("FILE: not valid YAML: unacceptable character #x0007")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("30000", 30000),
        ("-1", -1),
        ("0x1F", 31),
        ("0o17", 15),
        ("0777", "0777"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", float("inf")),
        ("1.2.3", "1.2.3"),
        ("'7'", "7"),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, value: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.YAML"
    file.write_text(f"key: {text}\n")
    read = read_mapping(file)["key"]
    assert (type(read), read) == (type(value), value)


def test_yaml_anchors_merges_and_cycles(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: &c [*c]\n")
    raw = read_mapping(file)
    assert raw["b"] == {"x": 1, "y": 3}
    assert raw["c"][0] is raw["c"]


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfserver: {}\n")
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbf[server]\r\nport = 1\r\n")
    assert read_mapping(tmp_path / "c.yaml") == {"server": {}}
    assert read_mapping(tmp_path / "c.toml") == {"server": {"port": 1}}
