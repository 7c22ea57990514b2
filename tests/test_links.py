"""Links in a folder of somebody's: inside they are followed, without running in circles; outside they are refused."""

import os

import pytest

from granvit.files import read_regular
from granvit.links import LinkOutsideError, check_link, walk, within


@pytest.fixture
def tree(tmp_path):
    for name in ("data/a/1.jpg", "data/b/2.jpg", "data/0.jpg", "elsewhere/secret.jpg", "data.more/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "data"


def test_a_folder_without_links_is_listed_in_order(tree):
    assert list(walk(tree)) == ["0.jpg", "a/1.jpg", "b/2.jpg"]


def test_links_inside_are_followed_once_and_never_in_circles(tree):
    (tree / "c").symlink_to("b")
    (tree / "c2").symlink_to("b")
    (tree / "b/up").symlink_to("..")
    (tree / "b/self").symlink_to(".")
    (tree / "a/5.jpg").symlink_to("../b/2.jpg")
    with within(tree):
        assert list(walk(tree)) == ["0.jpg", "a/1.jpg", "a/5.jpg", "b/2.jpg", "c/2.jpg"]
        assert read_regular(tree / "a/5.jpg", 100) == b"data/b/2.jpg"


def test_many_links_to_each_other_end(tree):
    for n in range(8):
        (tree / f"f{n}").mkdir()
        (tree / f"f{n}/{n}.jpg").write_text("")
        for m in range(8):
            (tree / f"f{n}/to{m}").symlink_to(f"../f{m}")
    names = list(walk(tree))
    assert len(names) == len(set(names)) < 30
    assert {f"f{n}/{n}.jpg" for n in range(8)} <= set(names)


def test_links_that_lead_out_are_given_and_refused(tree):
    (tree / "d").symlink_to("../elsewhere")
    (tree / "e.jpg").symlink_to("../elsewhere/secret.jpg")
    (tree / "f").symlink_to("../data.more")  # its name begins as the folder's does
    with within(tree):
        assert list(walk(tree)) == ["0.jpg", "d", "e.jpg", "f", "a/1.jpg", "b/2.jpg"]
        for name in ("d", "e.jpg", "f", "d/secret.jpg"):
            with pytest.raises(LinkOutsideError, match="--follow-links"):
                read_regular(tree / name, 100)
    with within(tree, follow_links=True):
        assert list(walk(tree))[-3:] == ["b/2.jpg", "d/secret.jpg", "f/3.jpg"]
        assert read_regular(tree / "e.jpg", 100) == b"elsewhere/secret.jpg"
    assert read_regular(tree / "e.jpg", 100) == b"elsewhere/secret.jpg"


def test_the_place_may_be_a_link_itself_and_what_lies_beside_it_is_no_link(tree):
    named = tree.parent / "named"
    named.symlink_to("data")
    (tree / "ann.json").write_text("{}")
    with within(named):
        check_link(named / "0.jpg")
        check_link(tree / "0.jpg")
    with within(tree / "ann.json"):
        check_link(tree / "0.jpg")
        check_link(tree.parent / "data.more/3.jpg")  # beside the folder, not through a link
        (tree.parent / "out").symlink_to("/etc")
        with pytest.raises(LinkOutsideError):
            check_link(tree.parent / "out/passwd")


def test_another_place_is_where_links_may_lead(tree):
    (tree / "pictures").symlink_to("../elsewhere")
    with within(tree, tree.parent / "elsewhere"):
        check_link(tree / "pictures/secret.jpg")


def test_a_pipe_is_refused_at_once(tree):
    os.mkfifo(tree / "pipe.jpg")
    with pytest.raises(ValueError, match="not a regular file"):
        read_regular(tree / "pipe.jpg", 100)
