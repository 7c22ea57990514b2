import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from granvit.corpus.annotate import caption
from granvit.corpus.annotate.base import AnnotateError
from granvit.corpus.annotate.caption import AnswerCache, default_cache_path
from granvit.corpus.annotate.caption_answers import Answer


def test_answers_are_found_again_by_another_reader(tmp_path):
    file = tmp_path / "deep/er/cache.sqlite"
    cache = AnswerCache(file)
    cache.put("a", "m", Answer("ein Hund 🐕"))
    cache.put("b", "m", Answer("cut", cut=True))
    cache.put("a", "m", Answer("another"))
    assert AnswerCache(file).get(["b", "x", "a"]) == {"a": Answer("ein Hund 🐕"), "b": Answer("cut", True)}
    assert AnswerCache(file).get([]) == {}


def test_more_keys_than_sqlite_takes_at_once(tmp_path):
    cache = AnswerCache(tmp_path / "c")
    cache.put("k40000", "m", Answer("x"))
    assert cache.get([f"k{i}" for i in range(50_000)]) == {"k40000": Answer("x")}


_WRITER = """
import sys
from pathlib import Path
from granvit.corpus.annotate.caption_answers import Answer
from granvit.corpus.annotate.caption import AnswerCache
cache = AnswerCache(Path(sys.argv[1]))
for i in range(10_000_000):
    cache.put(f"{sys.argv[2]}-{i}", "m", Answer(str(i)))
    print(i, flush=True)
"""


def test_two_processes_write_and_what_they_wrote_outlives_their_kill(tmp_path):
    file = tmp_path / "c.sqlite"
    command = [sys.executable, "-c", _WRITER, str(file)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    seen = {}
    for name, writer in zip("ab", writers, strict=True):
        assert writer.stdout
        for line in writer.stdout:
            seen[name] = int(line)
            if seen[name] >= 200:
                break
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    known = AnswerCache(file).get([f"{name}-{i}" for name in "ab" for i in range(seen[name] + 1)])
    assert len(known) == seen["a"] + seen["b"] + 2


def test_many_may_open_a_new_cache_at_once(tmp_path):
    def opened(folder: Path, together: threading.Barrier) -> AnswerCache:
        together.wait()
        return AnswerCache(folder / "c.sqlite")

    for attempt in range(100):  # one of sixty went wrong while nobody tried again
        together = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(opened, [tmp_path / str(attempt)] * 8, [together] * 8))
        made[0].put("k", "m", Answer("x"))
        assert all(cache.get(["k"]) == {"k": Answer("x")} for cache in made)


def test_a_cache_that_stays_locked_is_an_error_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(caption, "_PATIENCE_S", 0.2)
    file = tmp_path / "c.sqlite"
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("CREATE TABLE something (x)")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(AnnotateError, match="cannot be used as the cache of captions: database is locked"):
        AnswerCache(file)
    other.execute("COMMIT")
    assert AnswerCache(file).get(["k"]) == {}


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "text").write_text("these are a few words that no database begins with" * 100)
    with pytest.raises(AnnotateError, match="text: cannot be used as the cache"):
        AnswerCache(tmp_path / "text")
    with pytest.raises(AnnotateError, match="cannot be used as the cache"):
        AnswerCache(tmp_path)
    with pytest.raises(AnnotateError, match="cannot be used as the cache"):
        AnswerCache(tmp_path / "text" / "below")


def test_a_cache_that_cannot_be_written_is_no_silent_loss(tmp_path):
    file = tmp_path / "c.sqlite"
    cache = AnswerCache(file)
    with sqlite3.connect(file) as other:
        other.execute("DROP TABLE answers")
    with pytest.raises(AnnotateError, match="c.sqlite: the cache of captions cannot be written"):
        cache.put("a", "m", Answer("x"))
    with pytest.raises(AnnotateError, match="c.sqlite: the cache of captions cannot be read"):
        cache.get(["a"])


def test_the_default_is_the_users_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_path() == tmp_path / "granvit/captions.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(default_cache_path()) == "/home/somebody/.cache/granvit/captions.sqlite"


def test_how_an_answer_ended_is_remembered_and_files_of_before_are_read(tmp_path):
    cache = AnswerCache(tmp_path / "c.sqlite")
    answers = {
        "a": Answer("a dog"),
        "b": Answer("a d", cut=True),
        "c": Answer("no", refusal="caption-refused"),
        "d": Answer("f()", refusal="caption-tool-call"),
    }
    for key, answer in answers.items():
        cache.put(key, "m", answer)
    assert cache.get(list("abcd")) == answers
    with sqlite3.connect(tmp_path / "c.sqlite") as file:
        assert file.execute("SELECT cut FROM answers WHERE key < 'c' ORDER BY key").fetchall() == [(0,), (1,)]
