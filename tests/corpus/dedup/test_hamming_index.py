"""Neighbours in Hamming space: exactly those that comparing all pairs finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from granvit.corpus.dedup import hamming_index
from granvit.corpus.dedup.hamming_index import HashIndex, distance, groups


def around(count: int, seed: int) -> np.ndarray:
    """Random hashes, half of them a few bits from an earlier one."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for i in range(count // 2, count):
        hashes[i] = hashes[rng.integers(count // 2)]
        for bit in rng.choice(64, rng.integers(0, 14), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    return hashes


@pytest.mark.parametrize("radius", [0, 3, 4, 7, 8, 11])
@pytest.mark.parametrize("chunk", [37, 2_000_000])
def test_all_pairs_within_the_radius_are_found_once(radius, chunk, monkeypatch):
    monkeypatch.setattr(hamming_index, "_CHUNK", chunk)
    hashes, queries = around(300, 1), around(80, 2)
    queries[:40] = hashes[:40] ^ np.uint64(0b1011 << 30)
    asked, found, apart = HashIndex(hashes).search(queries, radius)
    wanted = {
        (q, i): bits
        for q, query in enumerate(queries.tolist())
        for i, known in enumerate(hashes.tolist())
        if (bits := bin(query ^ known).count("1")) <= radius
    }
    assert dict(zip(zip(asked.tolist(), found.tolist(), strict=True), apart.tolist(), strict=True)) == wanted
    assert len(asked) == len(wanted) and (radius < 3 or len(wanted) >= 40)


@pytest.mark.parametrize("chunk", [37, 2_000_000])
def test_of_each_query_the_nearest_are_found(chunk, monkeypatch):
    monkeypatch.setattr(hamming_index, "_CHUNK", chunk)
    hashes = around(300, 1)
    hashes[200:] = hashes[200:] & np.uint64(2**64 - 8)  # many that are alike, and some that are equal
    hashes[220:] = hashes[200] ^ np.arange(80, dtype=np.uint64) % 8
    queries = np.concatenate([hashes[250:260], around(20, 2)])
    every, some = (HashIndex(hashes).search(queries, 7, most) for most in (None, 5))
    wanted = []
    for query in range(len(queries)):
        mine = sorted((apart, item) for asked, item, apart in zip(*every, strict=True) if asked == query)[:5]
        wanted += sorted((query, item, apart) for apart, item in mine)
    assert list(zip(*some, strict=True)) == wanted and 50 <= len(wanted) < len(every[0])


def test_nothing_to_find():
    for hashes in (np.empty(0, np.uint64), np.array([0], np.uint64)):
        assert [len(part) for part in HashIndex(hashes).search(np.array([2**64 - 1], np.uint64), 11)] == [0, 0, 0]
    assert len(HashIndex(np.array([5], np.uint64)).search(np.empty(0, np.uint64), 11)[0]) == 0


def test_distance_counts_every_bit():
    a = np.array([0, 2**64 - 1, 2**63], np.uint64)
    assert distance(a, np.zeros(3, np.uint64)).tolist() == [0, 64, 1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_connected_components(pairs):
    found = groups(pairs)
    members = [i for group in found for i in group]
    assert len(members) == len(set(members)) and all(len(group) > 1 and group == sorted(group) for group in found)
    where = {i: n for n, group in enumerate(found) for i in group}
    assert all(where[a] == where[b] for a, b in pairs if a != b)
    # Smallest partition: spreading along the pairs from any member reaches its whole group.
    for group in found:
        reached, before = {group[0]}, 0
        while before != len(reached):
            before = len(reached)
            reached |= {x for pair in pairs if reached & set(pair) for x in pair}
        assert reached == set(group)
