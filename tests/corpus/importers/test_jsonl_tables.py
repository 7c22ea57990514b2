"""Tables read row by row: a JSON list must be parsed as json itself parses it, or not at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from granvit.corpus.importers.jsonl import read_rows
from granvit.corpus.layout import CorpusError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(rows=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 0, 3]), plain=st.booleans())
def test_a_list_gives_its_entries(tmp_path_factory, rows, indent, plain):
    file = tmp_path_factory.mktemp("rows") / "a.json"
    file.write_text(f" \n{json.dumps(rows, indent=indent, ensure_ascii=plain)}\n", encoding="utf-8", errors="replace")
    assert list(read_rows(file)) == json.loads(file.read_text(encoding="utf-8"))


@given(rows=st.lists(VALUES, min_size=1, max_size=3), share=st.floats(0, 1, exclude_max=True))
def test_a_list_that_is_cut_off_is_reported(tmp_path_factory, rows, share):
    text = json.dumps(rows)
    file = tmp_path_factory.mktemp("rows") / "a.json"
    file.write_text(text[: int(share * len(text))])
    with pytest.raises(CorpusError, match="a list in JSON is expected"):
        list(read_rows(file))
