"""Images are found in whatever they come in, in an order of their names alone; damage is reported, file by file."""

import io
import tarfile
from dataclasses import replace

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from granvit.corpus.annotate.base import InputFile
from granvit.corpus.annotate.pipeline import Listing
from granvit.corpus.annotate.sources import open_source
from granvit.corpus.check import LeftOut, Refused, Rejection
from granvit.corpus.importers import parquet
from granvit.corpus.layout import CorpusError
from granvit.corpus.store import CorpusWriter
from granvit.regions import Region, RegionImage


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def everything(source):
    """Id, URI and bytes, or the reason, of each image in order; and what could not be listed."""
    listing = Listing(source, shard_images=3)
    found = []
    for shard in range(listing.shards):
        for file, index in listing.inputs(shard):
            try:
                record = source.read(file, index)
                assert replace(source.identify(file, index), image=record.image) == record
                found.append((record.id, record.uri, record.image))
            except Refused as refused:
                known = source.identify(file, index)
                found.append((known.id, known.uri, refused.reason))
    return found, [(problem.reason, problem.uri) for problem in listing.problems]


def test_a_folder(tmp_path):
    (tmp_path / "b").mkdir()
    for name, number in (("b/2.PNG", 2), ("b/1.jpg", 1), ("c.png", 3)):
        (tmp_path / name).write_bytes(png(number))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    found, problems = everything(open_source(tmp_path, name="set"))
    uris = ["c.png", "b/1.jpg", "b/2.PNG"]
    assert found == [(f"set/{uri}", uri, png(number)) for uri, number in zip(uris, (3, 1, 2), strict=True)]
    assert problems == [("missing-image", "gone.png")]


@pytest.mark.parametrize("layout", ["struct", "binary"])
def test_parquet(tmp_path, layout):
    values = [png(n) for n in range(5)]
    values[3] = None
    column = [{"bytes": value, "path": "x"} for value in values] if layout == "struct" else values
    table = pa.table({"caption": ["c"] * 5, "image": column})
    (tmp_path / "sub").mkdir()
    pq.write_table(table, tmp_path / "sub" / "b.parquet", row_group_size=2)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing more PAR1")
    pq.write_table(pa.table({"text": ["no image"]}), tmp_path / "c.parquet")
    source = open_source(tmp_path, name="set")
    found, problems = everything(source)
    assert [image for _, _, image in found] == [png(0), png(1), png(2), "missing-image", png(4)]
    assert found[4][:2] == ("set/sub/b.parquet:4", "sub/b.parquet:4")
    assert problems == [("damaged-parquet", "a.parquet"), ("no-image-column", "c.parquet")]
    alone, _ = everything(open_source(tmp_path / "sub" / "b.parquet"))
    assert [(one[0], one[2]) for one in alone][:1] == [("b/b.parquet:0", png(0))]


def test_a_damaged_row_group_loses_its_own_images_only(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"image": [png(n) for n in range(4)]}),
        file,
        row_group_size=2,
        compression="snappy",
        use_dictionary=False,
    )
    page = pq.read_metadata(file).row_group(1).column(0).data_page_offset
    data = bytearray(file.read_bytes())
    data[page : page + 60] = b"\xff" * 60
    file.write_bytes(data)
    found, _ = everything(open_source(file))
    assert [image for _, _, image in found] == [png(0), png(1), "damaged-parquet", "damaged-parquet"]


def write_tar(path, members, cut=None):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    if cut:
        path.write_bytes(path.read_bytes()[:cut])


def test_tars(tmp_path):
    members = [("0.png", png(0)), ("0.json", b"{}"), ("../evil.png", png(9)), ("/abs.png", png(9)), ("0.png", png(1))]
    write_tar(tmp_path / "a.tar", members)
    # The second picture is cut off within.
    write_tar(tmp_path / "b.tar", [("1.png", png(1)), ("2.png", png(2))], cut=512 + 512 + 512 + 20)
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz"):
        pass
    found, problems = everything(open_source(tmp_path, name="set"))
    assert found[:2] == [("set/a.tar/0.png", "a.tar:0.png", png(0)), ("set/b.tar/1.png", "b.tar:1.png", png(1))]
    # What is cut off is reported once, as an image or as a member that could not be listed.
    assert found[2:] in ([], [("set/b.tar/2.png", "b.tar:2.png", "damaged-tar")])
    assert problems[:4] == [
        ("unsafe-member", "a.tar:../evil.png"),
        ("unsafe-member", "a.tar:/abs.png"),
        ("duplicate-id", "a.tar:0.png"),
        ("unsafe-member", "a.tar:link.png"),
    ]
    assert [problem for problem in problems[4:] if problem[0] != "damaged-tar"] == [("compressed-tar", "d.tar.gz")]
    assert ("damaged-tar", "c.tar:") in problems


def test_a_data_set_of_another_library(tmp_path):
    def rows(numbers):
        return datasets.Dataset.from_dict(
            {"label": numbers, "photo": [{"bytes": png(n), "path": None} for n in numbers]},
            features=datasets.Features({"label": datasets.Value("int64"), "photo": datasets.Image()}),
        )

    rows([1, 2]).save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"validation": rows([3]), "train": rows([4, 5])}).save_to_disk(tmp_path / "split")
    found, _ = everything(open_source(tmp_path / "plain"))
    assert found == [("plain/0", "0", png(1)), ("plain/1", "1", png(2))]
    source = open_source(tmp_path / "split")
    found, _ = everything(source)
    assert found == [
        ("split/train:0", "train:0", png(4)),
        ("split/train:1", "train:1", png(5)),
        ("split/validation:0", "validation:0", png(3)),
    ]
    assert source.read("validation", 0).split == "val"


def test_a_corpus_with_and_without_its_regions(tmp_path):
    record = RegionImage("x/1", png(1), 16, 12, [Region((0, 0, 9, 9), "cat")], "1.png", "x", "CC0", "a cat", "val")
    with CorpusWriter(tmp_path) as writer:
        writer.write(record)
    kept = open_source(tmp_path, keep=True)
    ((file, index),) = Listing(kept, None).inputs(0)
    assert kept.read(file, index) == record
    bare = open_source(tmp_path).read(file, index)
    assert (bare.regions, bare.caption, bare.id, bare.split) == ([], None, "x/1", "val")


def test_a_name_goes_in_front_of_a_corpuss_ids(tmp_path):
    """Which stay each its own, whatever sources the corpus is of."""
    with CorpusWriter(tmp_path) as writer:
        for source in ("x", "y"):
            writer.write(RegionImage(f"{source}/1", png(1), 16, 12, [], "1.png", source, "CC0"))
    source = open_source(tmp_path, name="mine")
    found, _ = everything(source)
    assert [id for id, *_ in found] == ["mine/x/1", "mine/y/1"]
    ((file, index), _) = Listing(source, None).inputs(0)
    assert (source.read(file, index).source, source.read(file, index).licence) == ("mine", "CC0")


def test_a_place_with_nothing_in_it_is_reported(tmp_path):
    with pytest.raises(CorpusError, match="does not exist"):
        open_source(tmp_path / "gone")
    with pytest.raises(CorpusError, match="holds no picture"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CorpusError, match="neither Parquet nor a tar"):
        open_source(tmp_path / "a.txt")
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(CorpusError, match="no boxes to keep"):
        open_source(tmp_path, keep=True)


def test_the_listing_changes_when_a_file_does(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    before = Listing(open_source(tmp_path), None).facts()
    assert Listing(open_source(tmp_path), None).facts() == before
    (tmp_path / "a.png").write_bytes(png(2) + b" ")
    assert Listing(open_source(tmp_path), None).facts()["sha256"] != before["sha256"]


@pytest.mark.parametrize(("images", "size"), [(1, 8), (300, 10), (100_000, 256)])
def test_small_inputs_are_cut_finely(images, size):
    class Many:
        def files(self):
            from granvit.corpus.annotate.base import InputFile

            yield InputFile("all", images, "")

    listing = Listing(Many(), None)
    assert listing.shard_images == size
    assert sum(len(listing.inputs(shard)) for shard in range(listing.shards)) == images


def test_links_lead_no_further_than_the_folder_unless_followed(tmp_path):
    src = tmp_path / "src"
    (src / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/9.png").write_bytes(png(9))
    (src / "sub/1.png").write_bytes(png(1))
    (src / "2.png").symlink_to("sub/1.png")
    (src / "3.png").symlink_to("../elsewhere/9.png")
    (src / "more").symlink_to("../elsewhere")
    found, problems = everything(open_source(src))
    assert [uri for _, uri, _ in found] == ["2.png", "sub/1.png"]
    assert problems == [("link-outside", "3.png"), ("link-outside", "more")]
    found, problems = everything(open_source(src, follow_links=True))
    assert [(uri, image) for _, uri, image in found][1] == ("3.png", png(9))
    assert ([uri for _, uri, _ in found][-1], problems) == ("sub/1.png", [])


@pytest.mark.parametrize("kind", ["a.parquet", "a.tar"])
def test_a_linked_table_or_tar_is_no_way_out(tmp_path, kind):
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "a.parquet")
    write_tar(tmp_path / "a.tar", [("1.png", png(1))])
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / kind).symlink_to(tmp_path / kind)
    found, problems = everything(open_source(tmp_path / "src"))
    assert (found, [reason for reason, _ in problems]) == ([], ["link-outside"])
    found, problems = everything(open_source(tmp_path / "src", follow_links=True))
    assert ([image for *_, image in found], problems[1:]) == ([png(1)], [])


def test_pictures_are_known_by_their_contents_and_other_formats_are_reported(tmp_path):
    (tmp_path / "a.jfif").write_bytes(png(1))
    (tmp_path / "b").write_bytes(png(2))
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "d.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "._a.jfif").write_bytes(b"\0\5\x16\7")
    found, problems = everything(open_source(tmp_path))
    assert [uri for _, uri, _ in found] == ["a.jfif", "b"]
    assert problems == [("unsupported-format", "c.heic"), ("unsupported-format", "d.pdf")]


def test_what_macos_adds_to_a_tar_is_no_picture(tmp_path):
    write_tar(
        tmp_path / "a.tar", [("._1.png", b"\0\5\x16\7" + bytes(60)), ("1.png", png(1)), ("__MACOSX/2.png", png(2))]
    )
    found, _ = everything(open_source(tmp_path))
    assert [uri for _, uri, _ in found] == ["a.tar:1.png"]


def test_a_table_is_decoded_in_batches_and_its_rows_have_a_size(tmp_path, monkeypatch):
    same = png(7) + bytes(1 << 20)
    pq.write_table(pa.table({"image": [same] * 40 + [png(1)]}), tmp_path / "a.parquet", compression="zstd")
    monkeypatch.setattr(parquet, "_MAX_BATCH_BYTES", 4 << 20)
    source = open_source(tmp_path)
    sizes = []
    take = parquet.row_of
    monkeypatch.setattr(parquet, "row_of", lambda batch, i: sizes.append(batch.num_rows) or take(batch, i))
    assert [source.read("a.parquet", i).image for i in (39, 40, 0, 3)] == [same, png(1), same, same]
    assert max(sizes) <= 4
    monkeypatch.setattr(parquet, "MAX_ROW_BYTES", 1 << 20)
    assert source.read("a.parquet", 40).image == png(1)
    with pytest.raises(Refused) as refused:
        source.read("a.parquet", 5)
    assert refused.value.reason == "too-costly"


def test_a_table_that_claims_more_rows_than_it_has_bytes(tmp_path):
    pq.write_table(pa.table({"image": pa.nulls(100_000, pa.binary())}), tmp_path / "a.parquet")
    assert everything(open_source(tmp_path)) == ([], [("damaged-parquet", "a.parquet")])


def test_pictures_beside_what_is_read_are_counted(tmp_path):
    """A stray Parquet file makes a folder of photographs one of Parquet: what is not read is named."""
    pq.write_table(pa.table({"image": [png(1)]}), tmp_path / "a.parquet")
    (tmp_path / "photo.jpg").write_bytes(png(2))
    (tmp_path / "notes.txt").write_text("notes")
    listed = list(open_source(tmp_path).files())
    assert [found.name for found in listed if isinstance(found, InputFile)] == ["a.parquet"]
    left_out = [(found.what, found.detail) for found in listed if isinstance(found, LeftOut)]
    assert left_out == [
        ("files that are no pictures", "notes.txt"),
        ("pictures beside the .parquet files", "photo.jpg"),
    ]


def test_members_of_a_tar_are_known_by_their_contents_and_all_are_accounted_for(tmp_path):
    members = {"0.jpg": png(1), "0.txt": b"a dog", "1": png(2), "2.heic": b"\0\0\0\x18ftypheic" + bytes(20)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path)
    listed = list(source.files())
    (file,) = [found for found in listed if isinstance(found, InputFile)]
    assert file.images == 2 and source.read("a.tar", 1).image == png(2)
    assert [(f.uri, f.reason) for f in listed if isinstance(f, Rejection)] == [("a.tar:2.heic", "unsupported-format")]
    assert [(f.what, f.detail) for f in listed if isinstance(f, LeftOut)] == [
        ("files that are no pictures", "a.tar:0.txt")
    ]
