"""The same four images and boxes in the layouts of VOC and of COCO."""

import json

import numpy as np
from PIL import Image

from retarget.pskd.studies.detection.settings import Settings

SETTINGS = {
    "train_split": "train", "validation_split": "val", "test_split": "test", "train_images": None,
    "validation_images": None, "test_images": None, "classes": None, "bad_boxes": "drop", "data_seed": 1,
    "min_size": 20, "max_size": 40, "augmentation": "none", "network": "timm:resnet10t", "epochs": 1,
    "pretrain": {"epochs": 1},
}  # fmt: skip
SPLITS = {"train": ("a", "b"), "val": ("c",), "test": ("d",)}
GOOD = [("cat", (2, 4, 20, 30), 0), ("dog", (10, 10, 40, 44), 1)]


def model(settings):
    return Settings.model_validate(settings)


def voc(folder, objects=None, size=(60, 48), suffix=".jpg"):
    """A directory in VOC's layout, 60 pixels wide and 48 high; ``objects`` by image in place of the good ones."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, names in SPLITS.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            described = "".join(
                f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
                f"<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
                for label, box, difficult in (objects or {}).get(name, GOOD)
            )
            width, height = size
            (folder / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><size><width>{width}</width><height>{height}</height></size>{described}</annotation>"
            )
            pixels = np.random.default_rng(ord(name)).integers(0, 255, (48, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}{suffix}")
    return {**SETTINGS, "dataset": f"voc:{folder}"}


def coco(folder, **more):
    """The same images and boxes in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    settings = voc(folder / "voc", **more)
    for split, names in SPLITS.items():
        (folder / split).mkdir()
        images, annotations = [], []
        for number, name in enumerate(names):
            (folder / "voc" / "JPEGImages" / f"{name}.jpg").rename(folder / split / f"{name}.jpg")
            images.append({"id": number, "file_name": f"{name}.jpg", "width": 60, "height": 48})
            for label, (x1, y1, x2, y2), crowd in GOOD:
                box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": {"cat": 7, "dog": 3}[label]}
                annotations.append({"id": len(annotations), "image_id": number, "iscrowd": crowd, **box})
        held = {"images": images, "annotations": annotations,
                "categories": [{"id": 3, "name": "dog"}, {"id": 7, "name": "cat"}]}  # fmt: skip
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(held))
    return {**settings, "dataset": f"coco:{folder}"}
