import hashlib
import random

from granvit.sampling import evenly, lowest_by_hash, unit_hash

NAMES = [f"image {number}" for number in range(300)]


def test_the_hash_is_sha256s_first_64_bits_over_2_to_the_64():
    assert unit_hash("a") == int(hashlib.sha256(b"a").hexdigest()[:16], 16) / 2**64
    hashes = [unit_hash(name) for name in NAMES]
    assert 0 <= min(hashes) and max(hashes) < 1 and 0.4 < sum(hashes) / len(hashes) < 0.6


def test_of_each_group_those_with_the_lowest_hashes():
    things = [(name, number % 3, name) for number, name in enumerate(NAMES)]
    random.Random(0).shuffle(things)
    for count in (1, 7, 100, 101):
        expected = {g: sorted(NAMES[g::3], key=unit_hash)[:count] for g in range(3)}
        assert lowest_by_hash(things, count) == expected


def test_things_need_not_be_comparable_and_of_one_name_the_first_is_chosen():
    first, second = {}, {"second": 1}
    (chosen,) = lowest_by_hash([(first, "", "same"), (second, "", "same")], 1)[""]
    assert chosen is first
    assert lowest_by_hash([], 3) == {}


def test_evenly_spaced():
    assert list(evenly(range(10), 5)) == [0, 2, 4, 6, 8]
    assert list(evenly(range(3), 5)) == [0, 1, 2] and list(evenly([], 2)) == []
