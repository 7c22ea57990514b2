"""What can go wrong with files: bytes, values of JSON, lines of text, names. All of it follows from a random state."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

# Each as the JSON of a value, since some of it no Python value writes.
VALUES = [
    "null", "true", "false", "0", "1", "-1", "2", "1.0", "0.5", "1e400", "-1e400", "NaN", "Infinity", "1" * 401,
    "1" * 5000, '""', '"1"', '"2.0"', '"640"', '"true"', '"false"', '"perhaps"', '"nan"', "[]", "{}", "[[]]", "[1]",
    '["1"]', "[1, 2, 3, 4]", '["1", "2", "3", "4"]', "[null, null, null, null]", '{"a": 1}', '"\\ud800"', '"\\u0000"',
    '"\\u202e dog"', '"../victim/secret.png"', '"/etc/passwd"', '"C:\\\\x.jpg"', '"' + "x" * 3000 + '"', '"test"',
    '"<image>"', "[" * 600 + "]" * 600,
    "[" * 950 + "]" * 950, "[" * 970 + "]" * 970, "[" * 100000,
    '{"bytes": "x", "path": 7}', '"\\ud83d\\ude00"', "1e-400",
    "18446744073709551616", "-9223372036854775809", '"  "', '"a\\nb"', '["test"]', '[true, false, true, true]',
]  # fmt: skip
WORDS = [
    "", " ", "nan", "inf", "-1", "0", "1e400", "1" * 401, "a,b", '"', "<", "&amp;", "<![CDATA[", "\t", "\r\n", "\\",
    "../x", "ä", "日", "\u2028", "\x00", "1_0", "٣", "[", "]", "[/EN#", "</object>", "<object/>", "<bndbox/>",
    "<!DOCTYPE x>",
    "<a>" * 3000, "###", "x" * 3000, " 1", " -1", ".jpg", "True",
]  # fmt: skip
NAMES = [
    "a.JPG",
    "._a.jpg",
    "a b.png",
    "a.xml",
    "A.XML",
    "new.json",
    "x.txt",
    "café.jpg",
    ".hidden",
    "a.jpg.bak",
    "1.jpg",
]
# Where the harness runs a case, a file that no import may read.
SECRET = "victim/secret.png"
ENCODINGS = ["utf-16", "utf-8-sig", "gb18030", "cp1251", "latin-1", "utf-7"]


def damage(folder: Path, random: Random) -> None:
    """Damage one file below a folder. Beside the folder there may be `SECRET`, to which links then lead."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return
    texts = [file for file in files if file.suffix in (".json", ".jsonl", ".xml", ".txt", ".csv")]
    file = random.choice(texts if texts and random.random() < 0.8 else files)
    kinds: list[Callable[[Path, Random], None]] = [_bytes, _name]
    if file in texts:
        kinds += [_words, _lines, _encoding] + ([_values] * 8 if "json" in file.suffix else [_words] * 4)
    random.choice(kinds)(file, random)
    for link in folder.rglob("*"):
        if link.is_symlink() and os.readlink(link) == SECRET:
            link.unlink()
            link.symlink_to(folder.resolve().parent / SECRET)


def _bytes(file: Path, random: Random) -> None:
    data = bytearray(file.read_bytes())
    at = random.randrange(len(data) + 1)
    choice = random.randrange(6)
    if choice == 0:
        del data[at:]
    elif choice == 1:
        data[at:at] = random.randbytes(random.choice([1, 4, 100]))
    elif choice == 2:
        del data[at : at + random.choice([1, 8, 100])]
    elif choice == 3:
        data[at:at] = data[at : at + 200]
    elif choice == 4:
        for _ in range(random.choice([1, 5])):
            if data:
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    else:
        data = bytearray(random.choice([b"", b"\0", b"{", b"[]", b"\xff\xfe", b"<a/>", random.randbytes(300)]))
    file.write_bytes(data)


def _values(file: Path, random: Random) -> None:
    """Another value, name or number of entries somewhere in a JSON file, or in one line of JSON lines."""
    text = file.read_text(errors="surrogateescape")
    lines = text.split("\n") if file.suffix == ".jsonl" else [text]
    at = random.randrange(len(lines))
    try:
        tree = json.loads(lines[at])
    except (ValueError, RecursionError):
        return
    spots: list[tuple[Any, Any]] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        inner = (
            list(node.items()) if isinstance(node, dict) else list(enumerate(node)) if isinstance(node, list) else []
        )
        spots += [(node, key) for key, _ in inner]
        stack += [value for _, value in inner]
    mark = "\ue000mark"
    if not spots:
        return
    node, key = random.choice(spots)
    choice, value = random.random(), random.choice(VALUES)
    if choice < 0.6:
        node[key] = mark
    elif choice < 0.7:
        del node[key]
    elif choice < 0.85 and isinstance(node, list):
        node.insert(random.randrange(len(node) + 1), node[key])
    elif choice < 0.9 and isinstance(node, list):
        node.append(mark)
    elif isinstance(node, dict):  # a name that is there twice
        node[f"{key}{mark}"] = node[key]
    lines[at] = json.dumps(tree).replace(json.dumps(mark), value).replace(json.dumps(mark)[1:-1], "")
    file.write_text("\n".join(lines), errors="surrogateescape")


def _words(file: Path, random: Random) -> None:
    text = file.read_text(errors="surrogateescape")
    at = random.randrange(len(text) + 1)
    end = min(at + random.choice([0, 0, 1, 3, 20]), len(text))
    file.write_text(text[:at] + random.choice(WORDS) + text[end:], errors="surrogateescape", newline="")


def _lines(file: Path, random: Random) -> None:
    lines = file.read_bytes().split(b"\n")
    at = random.randrange(len(lines))
    choice = random.randrange(5)
    if choice == 0:
        lines[at:at] = [lines[at]]
    elif choice == 1:
        del lines[at]
    elif choice == 2:
        random.shuffle(lines)
    elif choice == 3:
        lines = [line + b"\r" for line in lines]
    else:
        lines[at] = random.choice(WORDS).encode()
    file.write_bytes(b"\n".join(lines))


def _encoding(file: Path, random: Random) -> None:
    text = file.read_text(errors="replace").replace("a", random.choice(["a", "ä", "б", "犬"]))
    file.write_bytes(text.encode(random.choice(ENCODINGS), "replace"))


def _name(file: Path, random: Random) -> None:
    """A file that is gone, is called otherwise, is there twice, or is something else than a file."""
    other = file.with_name(random.choice(NAMES))
    choice = random.randrange(7)
    if choice == 0:
        file.unlink()
    elif choice == 1:
        file.rename(other)
    elif choice == 2:
        other.write_bytes(file.read_bytes())
    elif choice == 3:
        file.unlink()
        os.mkfifo(file)
    elif choice == 4:
        file.unlink()
        file.symlink_to(random.choice([SECRET, "/dev/zero", "/etc/passwd", file.name, "nowhere"]))
    elif choice == 5:
        file.unlink()
        file.mkdir()
    else:
        file.with_suffix(random.choice([".png", ".XML", ".jpeg", ".json"])).write_bytes(file.read_bytes())
