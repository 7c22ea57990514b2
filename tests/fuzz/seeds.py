"""A small, sound data set in every layout, from which the fuzzer starts: a few pictures, a few regions."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = (40, 30)


def picture(color: tuple[int, int, int] = (10, 200, 10), form: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", SIZE, color).save(data, form)
    return data.getvalue()


PNG, JPEG = picture(), picture(form="JPEG")


@dataclass(frozen=True)
class Seed:
    """A sound data set.

    Attributes:
        write: makes its files in a folder.
        src: what the importer is given, below that folder.
        options: what it is reported.
        finish: packs the files, once they are damaged, into what the layout has.
    """

    write: Callable[[Path], None]
    src: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[Path], None] | None = None


TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]

SEEDS: dict[str, Seed] = {}


def seed(name: str, src: str = "", finish: Callable[[Path], None] | None = None, **options: Any) -> Any:
    def enter(write: Callable[[Path], None]) -> Callable[[Path], None]:
        SEEDS[name] = Seed(write, src, options, finish)
        return write

    return enter


def put(file: Path, content: bytes | str | Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes | str):
        content = json.dumps(content, indent=1)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        put(folder / name, JPEG if name.endswith(".jpg") else PNG)


def tables(names: list[str]) -> dict[str, Any]:
    return {
        "images": [{"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": k, "bbox": [n, k, 9.5, 9], "iscrowd": k == 2,
             "segmentation": [[1, 1, 9, 1, 9, 9]]}
            for n in range(1, len(names) + 1) for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat/kitten"}],
    }  # fmt: skip


@seed("coco")
def coco(folder: Path) -> None:
    for part in ("train2017", "val2017"):
        names = [f"{part[0]}{n}.png" for n in range(3)]
        pictures(folder / part, *names)
        put(folder / f"annotations/instances_{part}.json", tables(names))
        put(folder / f"annotations/captions_{part}.json", {"annotations": [{"image_id": 1, "caption": "A dog."}]})


@seed("lvis")
def lvis(folder: Path) -> None:
    content = tables(["1.jpg", "2.jpg"])
    for image in content["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image["neg_category_ids"] = [2]
    content["categories"][0]["synonyms"] = ["dog", "hound"]
    pictures(folder / "train2017", "1.jpg", "2.jpg")
    put(folder / "lvis_v1_train.json", content)


@seed("objects365")
def objects365(folder: Path) -> None:
    content = tables([f"images/v1/patch8/objects365_v1_{n}.jpg" for n in range(2)])
    pictures(folder / "train/patch8", "objects365_v1_0.jpg", "objects365_v1_1.jpg")
    put(folder / "zhiyuan_objv2_train.json", content)


XML = """<annotation><size><width>40</width><height>30</height></size>
<object><name>dog</name><difficult>0</difficult>
<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>40</xmax><ymax>20</ymax></bndbox></object>
<object><name>a cat</name><part><name>head</name></part>
<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>20</ymax></bndbox>
<bndbox><xmin>12</xmin><ymin>3</ymin><xmax>19</xmax><ymax>20</ymax></bndbox></object></annotation>
"""


@seed("voc")
def voc(folder: Path) -> None:
    names = ("a", "b (1)", "c", "d")
    for name in names:
        pictures(folder / "JPEGImages", f"{name}.jpg")
        put(folder / f"Annotations/{name}.xml", XML)
    put(folder / "ImageSets/Main/train.txt", "a\nb (1)\n")
    put(folder / "ImageSets/Main/val.txt", "c\r\nd\r\n")


@seed("flickr30k_entities")
def flickr30k_entities(folder: Path) -> None:
    said = "[/EN#1/people Two guys] with [/EN#2/bodyparts shaggy hair] .\n[/EN#1/people Men] in [/EN#3/x a yard] .\n"
    xml = XML.replace("dog", "1").replace("a cat", "2")
    for name in "123":
        pictures(folder / "flickr30k-images", f"{name}.jpg")
        put(folder / f"Annotations/{name}.xml", xml)
        put(folder / f"Sentences/{name}.txt", said)
    put(folder / "train.txt", "1\n2\n")
    put(folder / "test.txt", "3\n")


@seed("visual_genome", objects=True)
def visual_genome(folder: Path) -> None:
    pictures(folder / "VG_100K", "1.jpg", "2.jpg")
    photos = [{"image_id": n, "url": f"https://x/VG_100K/{n}.jpg", "width": 40, "height": 30} for n in (1, 2)]
    side = {"x": 1, "y": 2}
    regions = [{"id": n, "regions": [{"region_id": 10 * n + k, "image_id": n, "phrase": f"a dog {k}", "width": 9,
                                      "height": 9, **side} for k in (1, 2)]} for n in (1, 2)]  # fmt: skip
    things = [{"image_id": n, "objects": [{"object_id": n, "names": ["tree", "trees"], "w": 9, "h": 9, **side}]}
              for n in (1, 2)]  # fmt: skip
    put(folder / "image_data.json", photos)
    put(folder / "region_descriptions.json", regions)
    put(folder / "objects.json", things)


@seed("textocr", src="TextOCR_0.1_val.json")
def textocr(folder: Path) -> None:
    pictures(folder / "train_images", "a.jpg", "b.jpg")
    anns = {f"{key}_{n}": {"id": f"{key}_{n}", "image_id": key, "bbox": [1, n, 9, 9], "utf8_string": f"word{n}",
                           "points": [1, 1, 9, 1, 9, 9, 1, 9]} for key in "ab" for n in (1, 2)}  # fmt: skip
    imgs = {key: {"id": key, "width": 40, "height": 30, "set": "val", "file_name": f"train/{key}.jpg"} for key in "ab"}
    listed = {key: [f"{key}_1", f"{key}_2"] for key in "ab"}
    put(folder / "TextOCR_0.1_val.json", {"imgs": imgs, "anns": anns, "imgToAnns": listed})


@seed("refcoco")
def refcoco(folder: Path) -> None:
    pictures(folder / "train2014", "COCO_train2014_000000000001.jpg", "COCO_train2014_000000000002.jpg")
    rows = [
        {
            "file_name": f"COCO_train2014_00000000000{n}_7.jpg",
            "ann_id": n,
            "image_id": n,
            "split": split,
            "sentences": [{"sent": "left dog"}, {"sent": "the dog"}],
        }
        for n, split in ((1, "train"), (2, "testA"))
    ]
    put(folder / "refs.jsonl", "\n".join(map(json.dumps, rows)))
    put(folder / "instances.json", tables([f"COCO_train2014_00000000000{n}.jpg" for n in (1, 2)]))
    content = json.loads((folder / "instances.json").read_text())
    for annotation, key in zip(content["annotations"], (1, 3, 2, 4), strict=True):
        annotation["id"] = key
    put(folder / "instances.json", content)


@seed("funsd")
def funsd(folder: Path) -> None:
    words = [{"box": [2, 2, 9, 8], "text": "TO:"}, {"box": [12, 2, 20, 8], "text": "Mr."}]
    form = [{"id": n, "box": [2, 2, 20, 8], "text": "TO: Mr.", "label": "question", "linking": [[0, 1]], "words": words}
            for n in (0, 1)]  # fmt: skip
    for part in ("training_data", "testing_data"):
        for name in "ab":
            pictures(folder / part / "images", f"{name}.png")
            put(folder / part / f"annotations/{name}.json", {"form": form})


def exchange_row(name: str) -> dict[str, Any]:
    regions = [{"bbox": [1.5, 2, 20, 10], "caption": "a dog", "captions": ["a dog", "pet"], "score": 0.5},
               {"bbox": [0, 0, 9, 9], "text": "EXIT", "ignore": True, "polygon": [[0, 0], [9, 1], [9, 9]]}]  # fmt: skip
    said = {"conversations": [TALK], "qa": [{"question": "Open?", "answer": "no"}]}
    row = {"image": name, "width": 40, "height": 30, "split": "train", "caption": "A shop.", "regions": regions}
    return row | said


@seed("jsonl")
def jsonl(folder: Path) -> None:
    names = [f"images/{n}.png" for n in range(3)]
    pictures(folder, *names)
    rows = [*map(exchange_row, names), {"split": "train", "conversations": [TALK, TALK]}]
    put(folder / "annotations.jsonl", "\n".join(map(json.dumps, rows)))


@seed("llava", src="mix.json", frame="image")
def llava(folder: Path) -> None:
    pictures(folder / "images", "a.jpg", "b.jpg")
    said = [("<image>\nProvide a short description for this region: [0.1, 0.1, 0.5, 0.5]", "the red car"),
            ("Provide the bounding box of the region this sentence describes: dog", "[0.2, 0.2, 0.6, 0.6]"),
            ("What is this?", "A street.")]  # fmt: skip
    turns = [part for q, a in said for part in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
    entries = [{"id": n, "image": f"images/{n}.jpg", "conversations": turns} for n in "ab"]
    put(folder / "mix.json", [*entries, {"id": "c", "conversations": turns[-2:]}])


@seed("sharegpt", src="talk.jsonl")
def sharegpt(folder: Path) -> None:
    pictures(folder, "a.jpg", "b.jpg")
    ask = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": ask},
             {"role": "assistant", "content": "A street."}]  # fmt: skip
    rows = [{"images": ["a.jpg"], "messages": turns}, {"image": "b.jpg", "messages": turns}, {"messages": TALK}]
    put(folder / "talk.jsonl", "\n".join(map(json.dumps, rows)))


def questions(folder: Path, file: str, image: str, field: str, rows: str = "data", **names: str) -> None:
    """A table of questions; `names` are what its fields are called."""
    pictures(folder, image)
    row = {"questionId": 1, field: Path(image).stem if field == "image_id" else Path(image).name}
    row |= {names.get("question", "question"): "What is it?", names.get("answers", "answers"): ["a dog", "a cat"]}
    put(folder / file, {rows: [row, row | {"questionId": 2}]} if rows else [row])


@seed("docvqa")
def docvqa(folder: Path) -> None:
    questions(folder, "train_v1.0.json", "images/a.png", "image")


@seed("infovqa")
def infovqa(folder: Path) -> None:
    questions(folder, "infographicsVQA_train_v1.0.json", "images/a.png", "image_local_name")


@seed("textvqa")
def textvqa(folder: Path) -> None:
    questions(folder, "TextVQA_0.5.1_train.json", "train_images/a.jpg", "image_id")


@seed("chartqa")
def chartqa(folder: Path) -> None:
    questions(folder, "train_human.json", "png/a.png", "imgname", "", question="query", answers="label")


def shares(name: str) -> dict[str, Any]:
    """An entry of GRIT, which FineHARD's resemble."""
    return {
        "key": name, "url": f"https://x/{name}.jpg", "caption": "a dog in a yard", "width": 40, "height": 30,
        "original_width": 40, "original_height": 30, "status": "success",
        "noun_chunks": [[0, 5, 0.1, 0.1, 0.5, 0.5, 0.9]], "ref_exps": [[0, 15, 0.1, 0.1, 0.5, 0.5, 0.9]],
    }  # fmt: skip


@seed("finehard", src="FineHARD")
def finehard(folder: Path) -> None:
    pictures(folder / "data/grit-12m", "0/a.jpg", "0/b.jpg")
    info = [{"bbox": [0.1, 0.1, 0.5, 0.5, 0.9], "short_expr": "a dog", "long_expr": "a dog in a yard"}]
    entries = [{"f_path": f"grit-20m/data-12m/0/{n}.jpg", "caption": "A yard.", "bbox_info": info} for n in "ab"]
    put(folder / "FineHARD/jsonfiles/results.json", entries)


def into_tar(folder: Path) -> None:
    """The files of `members/` as a shard."""
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for file in sorted((folder / "members").rglob("*")):
            if file.is_file() and not file.is_symlink():
                tar.add(file, file.relative_to(folder / "members").as_posix(), recursive=False)


@seed("grit", src="00000.tar", finish=into_tar)
def grit(folder: Path) -> None:
    for name in ("000", "001"):
        put(folder / f"members/{name}.jpg", JPEG)
        put(folder / f"members/{name}.json", shares(name))


@seed("webdataset", src="00000.tar", finish=into_tar)
def webdataset(folder: Path) -> None:
    for name in ("000", "001"):
        put(folder / f"members/{name}.jpg", JPEG)
        put(folder / f"members/{name}.json", exchange_row(name))
        put(folder / f"members/{name}.txt", "A caption.")
    put(folder / "members/talk.json", {"regions": [], "conversations": [TALK]})


def into_parquet(folder: Path) -> None:
    """The rows of `rows.json` as a table; where they have no types in common, each value as its JSON."""
    file = folder / "rows.json"
    try:
        rows = json.loads(file.read_bytes()) if file.is_file() and not file.is_symlink() else []
    except (ValueError, RecursionError):
        rows = []
    rows = [row if isinstance(row, dict) else {"image": row} for row in (rows if isinstance(rows, list) else [])]
    for row in rows:
        if row.get("image") == "PNG":
            row["image"] = {"bytes": PNG, "path": "a.png"}
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        table = pa.table({"image": [PNG] * len(rows), "caption": [json.dumps(str(row)) for row in rows]})
    pq.write_table(table, folder / "train-00000-of-00001.parquet")


@seed("parquet", src="train-00000-of-00001.parquet", finish=into_parquet)
def parquet(folder: Path) -> None:
    rows = [{"image": "PNG", "caption": "A dog.", "id": f"row{n}", "messages": TALK} for n in range(3)]
    put(folder / "rows.json", [*rows, {"image": None, "caption": None, "id": "talk", "messages": TALK}])


@seed("image_folder")
def image_folder(folder: Path) -> None:
    pictures(folder, "a.jpg", "b/c.png", "b/d.png")
    put(folder / "notes.txt", "no picture")


@seed("sroie")
def sroie(folder: Path) -> None:
    for name in "ab":
        pictures(folder / "img", f"{name}.jpg")
        put(folder / f"box/{name}.csv", '1,1,30,1,30,9,1,9,TOTAL 12.50\n1,11,30,11,30,19,1,19,"A, B"\n')


@seed("icdar")
def icdar(folder: Path) -> None:
    for name in ("img_1", "img_2"):
        pictures(folder / "images", f"{name}.jpg")
        put(folder / f"gt/gt_{name}.txt", '1,1,30,2,30,9,1,9,EXIT\n1,11,30,11,30,19,1,19,###\n1, 2, 30, 9, "word"\n')


@seed("docbank")
def docbank(folder: Path) -> None:
    for name in "ab":
        pictures(folder / "DocBank_500K_ori_img", f"{name}_ori.jpg")
        words = [f"word{n}\t{100 * n}\t50\t{100 * n + 90}\t160\t0\t0\t0\tfont\tparagraph" for n in range(3)]
        put(folder / f"DocBank_500K_txt/{name}.txt", "\n".join(words) + "\n")
    put(folder / "indexed_files/500K_train.txt", "a.txt\n")
    put(folder / "indexed_files/500K_test.txt", "b.txt\n")
