"""Tar shards as WebDataset and img2dataset write them, and as an attacker or a broken download would."""

import io
import json
import tarfile

import pytest
from helpers.importing import bring, picture

from granvit.corpus.check import read_quarantine
from granvit.corpus.importers import import_corpus, webdataset
from granvit.corpus.store import Corpus, CorpusError
from granvit.regions import Region

PICTURE = picture()


def shard(file, *files, mode="w"):
    """`files` are (name, content) or a `TarInfo` without content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:
        for item in files:
            if isinstance(item, tarfile.TarInfo):
                tar.addfile(item)
                continue
            name, content = item
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ROW = {
    "id": "shop/7",
    "width": 40,
    "height": 30,
    "source": "shop",
    "split": "test",
    "licence": "CC0",
    "caption": "A shop.",
    "regions": [{"bbox": [1.5, 2, 20, 10], "text": "EXIT", "score": 0.5, "text_by": "ocr:x"}],
}


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_regions_and_captions(tmp_path, ending, mode):
    shard(
        tmp_path / f"wds/00000.{ending}",
        special("train", tarfile.DIRTYPE),
        ("train/000.jpg", PICTURE), ("train/000.json", ROW), ("train/000.txt", b"not used"), ("train/000.cls", b"1"),
        ("train/001.png", picture(form="PNG")), ("train/001.txt", "naïve\n".encode()),
        ("train/002.json", {"caption": "from the web", "width": 9, "key": "002"}), ("train/002.jpg", PICTURE),
        mode=mode,
    )  # fmt: skip
    shard(tmp_path / "wds/00001.tar", ("000.webp", picture(form="WEBP")))
    (tmp_path / "wds/README.md").write_text("no shard")
    [first, second, third, fourth], refused = bring("webdataset", tmp_path / "wds", tmp_path / "out")
    assert (first.id, first.source, first.split, first.licence) == ("shop/7", "shop", "test", "CC0")
    assert (first.caption, first.image) == ("A shop.", PICTURE)
    assert first.regions == [Region((1.5, 2, 20, 10), "EXIT", "text", score=0.5, text_by="ocr:x")]
    assert (second.id, second.caption, second.regions) == ("wds/train/001", "naïve", [])
    assert (third.id, third.caption) == ("wds/train/002", "from the web")
    assert (fourth.id, fourth.uri, fourth.caption) == ("wds/000", "00001.tar:000", None)
    assert refused == []


def test_what_could_reach_outside_is_refused_and_nothing_is_unpacked(tmp_path, monkeypatch):
    src = shard(
        tmp_path / "wds/evil.tar",
        ("../escaped.jpg", PICTURE), ("/tmp/absolute.jpg", PICTURE), ("a/../../b.jpg", PICTURE), ("C:\\c.jpg", PICTURE),
        special("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), special("hard.jpg", tarfile.LNKTYPE, "../escaped.jpg"),
        special("device.jpg", tarfile.CHRTYPE), special("pipe.jpg", tarfile.FIFOTYPE),
        ("good.jpg", PICTURE),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    [got], refused = bring("webdataset", src, tmp_path / "out")
    assert got.uri == "evil.tar:good"
    assert [r.reason for r in refused] == ["unsafe-member"] * 8
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} - before == set()


@pytest.mark.parametrize("ending", ["tar", "tgz"])
def test_a_shard_that_is_cut_anywhere_gives_whole_samples_only(tmp_path, ending):
    files = [
        (f"{n}.{kind}", content)
        for n in range(3)
        for kind, content in (("jpg", PICTURE), ("json", ROW | {"id": f"{n}"}))
    ]
    whole = shard(tmp_path / f"whole.{ending}", *files, mode="w:gz" if ending == "tgz" else "w").read_bytes()
    good = shard(tmp_path / "wds/b.tar", ("good.jpg", PICTURE), ("good.json", ROW | {"id": "wds/good"}))
    cut = good.with_name(f"a.{ending}")
    kept = set()
    for size in range(0, len(whole) - 9, max(len(whole) // 23, 1)):
        cut.write_bytes(whole[:size])
        records, refused = bring("webdataset", cut.parent, tmp_path / "out", overwrite=True)
        assert all(len(r.regions) == 1 for r in records)
        assert records[-1].id == "wds/good"
        assert [r.reason for r in refused] in (["damaged-tar"], [])
        assert refused or len(records) == 4
        kept.add(len(records) - 1)
    assert {0, 1} <= kept


def test_a_damaged_header_is_reported(tmp_path):
    file = shard(tmp_path / "wds/a.tar", *((f"{n}.jpg", PICTURE) for n in range(3)))
    data = bytearray(file.read_bytes())
    header = data.index(b"2.jpg")
    data[header + 150] ^= 0xFF
    file.write_bytes(data)
    records, refused = bring("webdataset", file, tmp_path / "out")
    assert [r.id for r in records] == ["a.tar/0"]
    assert [(r.reason, r.uri) for r in refused] == [("damaged-tar", "a.tar:1")]


def test_damaged_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_MEMBER_BYTES", 5_000)
    src = shard(
        tmp_path / "wds/a.tar",
        ("a.jpg", PICTURE), ("a.json", b"{"),
        ("b.jpg", PICTURE), ("b.json", [1]),
        ("c.jpg", PICTURE), ("c.json", ROW | {"regions": None}),
        ("d.jpg", PICTURE), ("d.json", ROW | {"width": [40]}),
        ("e.json", ROW),
        ("f.jpg", b"no picture"),
        ("g.jpg", PICTURE + bytes(6_000)),
        ("h.jpg", PICTURE), ("h.json", ROW | {"width": 41}),
        ("i.jpg", PICTURE),
        ("i.json", ROW | {"regions": [{"bbox": [1, 2]}, 7, {"bbox": [1, 2, 9, 9], "caption": "x"}]}),
    )  # fmt: skip
    records, refused = bring("webdataset", src, tmp_path / "out", source="mine")
    assert [(r.id, len(r.regions)) for r in records] == [("shop/7", 1)]
    assert [r.reason for r in refused] == [
        "not-json", "not-json", "bad-field", "bad-field", "missing-image", "not-an-image", "too-large",
        "size-mismatch", "empty-text", "empty-text",
    ]  # fmt: skip


def test_no_shards(tmp_path):
    with pytest.raises(CorpusError, match="holds no shards"):
        bring("webdataset", tmp_path, tmp_path / "out")


def test_samples_whose_files_are_not_together_are_refused_whole(tmp_path):
    src = shard(
        tmp_path / "wds/a.tar",
        ("0.jpg", PICTURE), ("1.jpg", PICTURE), ("2.jpg", PICTURE), ("2.json", ROW | {"id": "2"}),
        ("0.json", ROW | {"id": "0"}), ("1.json", ROW | {"id": "1"}),
    )  # fmt: skip
    summary = import_corpus("webdataset", src, tmp_path / "out")
    assert [record.id for record in Corpus(tmp_path / "out")] == ["2"]
    refused = read_quarantine(tmp_path / "out/quarantine.jsonl")
    assert [(r.reason, r.uri, r.regions) for r in refused] == [
        ("not-grouped", "a.tar:0", 0), ("not-grouped", "a.tar:1", 0),
        ("not-grouped", "a.tar:0", 1), ("not-grouped", "a.tar:1", 1),
    ]  # fmt: skip
    assert (summary.regions_seen, summary.regions_written, summary.regions_with_image) == (3, 1, 2)


def test_what_macos_and_pax_add_parts_no_sample_and_is_counted(tmp_path):
    double = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(40)
    src = shard(
        tmp_path / "wds/a.tar",
        ("._0.jpg", double), ("0.jpg", PICTURE), ("._0.json", double), ("0.json", ROW), (".DS_Store", b"\0\0\0\1Bud1"),
        ("__MACOSX/._0.jpg", double), ("PaxHeaders.7/0.jpg", b"30 mtime=1\n"), ("0.cls", b"3"), ("1.jpg", PICTURE),
    )  # fmt: skip
    summary = import_corpus("webdataset", src, tmp_path / "out")
    first, second = Corpus(tmp_path / "out")
    assert (first.id, len(first.regions), second.uri) == ("shop/7", 1, "a.tar:1")
    assert summary.left_out == {
        "files that macOS adds": 4, "headers of pax that were unpacked as files": 1, "members .cls": 1
    }  # fmt: skip
    assert summary.images_quarantined == 0


def test_the_same_key_in_two_shards_is_two_samples(tmp_path):
    for name in ("a", "b"):
        shard(tmp_path / f"wds/{name}.tar", ("0.jpg", PICTURE))
    records, refused = bring("webdataset", tmp_path / "wds", tmp_path / "out")
    assert ([r.id for r in records], refused) == (["wds/0", "wds/b/0"], [])


def test_the_members_of_a_sample_have_a_sum(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_SAMPLE_BYTES", 20_000)
    many = [(f"0.{n}.txt", bytes(9_000)) for n in range(20)]
    src = shard(tmp_path / "wds/a.tgz", ("0.jpg", PICTURE), *many, ("0.json", bytes(15_000)), ("0.png", bytes(15_000)),
                ("1.jpg", PICTURE), mode="w:gz")  # fmt: skip
    records, refused = bring("webdataset", src, tmp_path / "out")
    assert ([r.uri for r in records], [(r.reason, r.uri) for r in refused]) == (["a.tgz:1"], [("too-large", "a.tgz:0")])


def test_a_shard_that_unpacks_to_too_much_is_left_there(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "_MAX_UNPACKED_BYTES", 100_000)
    src = shard(tmp_path / "wds/a.tgz", ("0.jpg", PICTURE), ("1.npy", bytes(1 << 20)), ("2.jpg", PICTURE), mode="w:gz")
    shard(tmp_path / "wds/b.tgz", ("3.jpg", PICTURE), mode="w:gz")
    records, refused = bring("webdataset", tmp_path / "wds", tmp_path / "out")
    assert [r.uri for r in records] == ["b.tgz:3"]
    assert [r.reason for r in refused] == ["too-costly"]
    assert src.stat().st_size < 10_000


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_gigabytes_is_not_read(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 3 << 20
    file = tmp_path / "wds/b.tar"
    shard(tmp_path / "wds/a.tar", ("0.jpg", PICTURE))
    file.write_bytes(info.tobuf() + b"0" * (3 << 20) + bytes(1024))
    records, refused = bring("webdataset", tmp_path / "wds", tmp_path / "out")
    assert (len(records), [r.reason for r in refused]) == (1, ["damaged-tar"])


def test_what_is_not_read_of_a_region_row_is_counted(tmp_path):
    region = ROW["regions"][0] | {"caption": "a sign", "label": "sign"}
    shard(
        tmp_path / "wds/0.tar",
        ("0.jpg", PICTURE),
        ("0.json", ROW | {"image": "0.jpg", "tags": [], "regions": [region]}),
    )
    left_out = import_corpus("webdataset", tmp_path / "wds", tmp_path / "out").left_out
    told = {name: n for name, n in left_out.items() if n}
    expected = {"field 'tags'": 1, "field 'label' of a region": 1, "caption beside the text of a region": 1}
    assert told == expected


def test_a_caption_in_another_encoding(tmp_path):
    text = "收据".encode("gb18030")
    src = shard(tmp_path / "a.tar", ("0.jpg", PICTURE), ("0.txt", text), ("1.jpg", PICTURE), ("1.txt", b"plain"))
    records, refused = bring("webdataset", src, tmp_path / "out")
    assert ([r.caption for r in records], [r.reason for r in refused]) == (["plain"], ["bad-encoding"])
    records, refused = bring("webdataset", src, tmp_path / "named", encoding="gb18030")
    assert ([r.caption for r in records], refused) == (["收据", "plain"], [])


def test_files_beside_the_shards_are_counted(tmp_path):
    shard(tmp_path / "wds/a.TAR", ("0.jpg", PICTURE))
    (tmp_path / "wds/._a.TAR").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tmp_path / "wds/b.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    summary = import_corpus("webdataset", tmp_path / "wds", tmp_path / "out")
    assert (summary.images_written, summary.images_quarantined) == (1, 0)
    assert summary.left_out == {"files that macOS adds": 1, "files that are no shards": 1}
    assert "files that are no shards (b.tar.zst)" in str(summary)


def test_conversations_need_no_regions(tmp_path):
    talk = [[{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]]
    src = shard(
        tmp_path / "a.tar",
        ("0.jpg", PICTURE), ("0.json", {"conversations": talk, "qa": [{"question": "q", "answer": "a"}]}),
        ("1.json", {"conversations": talk, "source": "talk"}),
        ("2.jpg", b"no picture"), ("2.json", {"conversations": talk * 2}),
        ("3.jpg", PICTURE), ("3.json", {"caption": "kept", "conversations": [{"from": "human", "value": "x"}]}),
        ("../4.jpg", PICTURE), ("../4.json", {"conversations": talk}),
    )  # fmt: skip
    records, refused = bring("webdataset", src, tmp_path / "out")
    assert [(r.caption, [said[1].text for said in r.conversations]) for r in records] == [
        (None, ["A dog.", "a"]), (None, ["A dog."]), ("kept", []),
    ]  # fmt: skip
    assert records[1].text_only
    assert [(r.reason, r.conversation, r.conversations) for r in refused] == [
        ("not-an-image", None, 2), ("bad-field", 0, 0), ("unsafe-member", None, 0)
    ]  # fmt: skip
