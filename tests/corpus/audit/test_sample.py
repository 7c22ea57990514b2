import random

from granvit.corpus.audit.sheet import sample

IMAGES = [(i, "a" if i % 10 else "b", f"{i}.jpg") for i in range(200)]


def test_the_same_seed_gives_the_same_images_in_any_order():
    shuffled = random.Random(0).sample(IMAGES, len(IMAGES))
    assert sample(IMAGES, 20, seed=1) == sample(shuffled, 20, seed=1)
    assert set(sample(IMAGES, 20, seed=1)) != set(sample(IMAGES, 20, seed=2))


def test_sources_share_evenly_however_large():
    chosen = sample(IMAGES, 20, seed=1)
    assert len(chosen) == len(set(chosen)) == 20
    assert sum(i % 10 == 0 for i in chosen) == 10


def test_a_small_source_leaves_its_share_to_the_others():
    images = [(0, "tiny", "x"), *[(i, "large", f"{i}") for i in range(1, 50)]]
    chosen = sample(images, 10, seed=0)
    assert 0 in chosen and len(chosen) == 10


def test_a_new_image_changes_one_at_most():
    before = set(sample(IMAGES, 20, seed=1))
    for number in range(20):
        after = set(sample([*IMAGES, (200, "a", f"new{number}.jpg")], 20, seed=1))
        assert len(before - after) <= 1


def test_more_than_there_are_and_none():
    assert sorted(sample(IMAGES, 1000, seed=0)) == list(range(200))
    assert sample(IMAGES, 0, seed=0) == [] == sample([], 5, seed=0)
