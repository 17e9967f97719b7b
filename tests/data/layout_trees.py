"""Small trees with the file names and table headers of the public data sets, for the tests of their importers."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from cxr_pipeline.data.layouts.chexpert import OBSERVATIONS


def film(path: Path, size=(40, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    start = zlib.crc32(str(path).encode())  # no two are equal
    picture = (start + np.arange(size[0] * size[1], dtype=np.uint32).reshape(size)) * (1 + start % 97) % 251
    suffix = path.suffix if path.suffix in (".png", ".jpg", ".jpeg") else ".png"
    cv2.imencode(suffix, picture.astype(np.uint8))[1].tofile(path)
    return path


def lung(path: Path, columns: slice, size=(40, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[5:30, columns] = 255
    if path.suffix == ".gif":
        Image.fromarray(mask).save(path)
    else:
        cv2.imencode(".png", mask)[1].tofile(path)


def text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def montgomery(root: Path) -> Path:
    home = root / "MontgomerySet"
    for name, reading in (("MCUCXR_0001_0", ("F", "027Y", "normal")), ("MCUCXR_0104_1", ("M", "063Y", "RUL TB"))):
        film(home / "CXR_png" / f"{name}.png")
        lung(home / "ManualMask" / "leftMask" / f"{name}.png", slice(25, 35))
        lung(home / "ManualMask" / "rightMask" / f"{name}.png", slice(5, 15))
        sex, age, finding = reading
        text(home / "ClinicalReadings" / f"{name}.txt", f"Patient's Sex: {sex} ", f"Patient's Age: {age}", finding)
    (home / "CXR_png" / "Thumbs.db").write_text("x")
    return home


def shenzhen(root: Path) -> Path:
    home = root / "ChinaSet_AllFiles"
    film(home / "CXR_png" / "CHNCXR_0001_0.png")
    film(home / "CXR_png" / "CHNCXR_0327_1.png")
    text(home / "ClinicalReadings" / "CHNCXR_0001_0.txt", "male 45yrs", "normal", "")
    text(home / "ClinicalReadings" / "CHNCXR_0327_1.txt", "Female, 28 yrs", "STB")
    lung(home / "mask" / "CHNCXR_0001_0_mask.png", slice(5, 35))
    return home


def jsrt(root: Path) -> Path:
    home = root / "JSRT"
    (home / "All247images").mkdir(parents=True)
    stored = np.full((2048, 2048), 1000, ">u2")
    stored[0, 0], stored[0, 1] = 4095, 0
    stored.tofile(home / "All247images" / "JPCLN001.IMG")
    film(home / "All247images" / "JPCNN001.png", (64, 64))
    for number, name in enumerate(("JPCLN001", "JPCNN001"), 1):
        for side, columns in (("left lung", slice(25, 35)), ("right lung", slice(5, 15))):
            lung(home / "scratch" / f"fold{number}" / "masks" / side / f"{name}.gif", columns)
        lung(home / "scratch" / f"fold{number}" / "masks" / "heart" / f"{name}.gif", slice(15, 25))
    text(
        home / "Clinical_Information" / "CLNDAT_EN.txt",
        "JPCLN001.IMG\t5\t15\t53\tMale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer",
    )
    text(home / "Clinical_Information" / "CNNDAT_EN.TXT", "JPCNN001.IMG 60  Female non-nodule")
    return home


def tbx11k(root: Path) -> Path:
    home = root / "TBX11K"
    names = ["health/h0001.png", "health/h0002.png", "sick/s0001.png", "tb/tb0003.png", "tb/tb0005.png"]
    extra = [
        *("extra/da+db/train/n1.png", "extra/da+db/val/n1.png", "extra/da+db/train/px2.jpg"),
        *("extra/mc+shenzhen/train/MCUCXR_0001_0.png", "extra/mc+shenzhen/val/CHNCXR_0327_1.png"),
    ]
    for name in [*names, *extra, "test/test_0001.png"]:
        film(home / "imgs" / name, (512, 512) if "tb/" in name else (40, 40))
    text(home / "lists" / "TBX11K_train.txt", *names[::2], "health/gone.png")
    text(home / "lists" / "TBX11K_val.txt", *names[1::2])
    text(home / "lists" / "TBX11K_trainval.txt", *names)
    text(home / "lists" / "all_train.txt", *names[::2], *(n for n in extra if "/train/" in n))
    text(home / "lists" / "all_val.txt", *names[1::2], *(n for n in extra if "/val/" in n))
    text(home / "lists" / "all_test.txt", "test/test_0001.png")
    coco = {
        "images": [{"id": 7, "file_name": "tb/tb0003.png", "width": 512, "height": 512}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [334.5, 111.0, 35.25, 39.0], "area": 9}],
        "categories": [
            {"id": 1, "name": "ActiveTuberculosis"},
            {"id": 2, "name": "ObsoletePulmonaryTuberculosis"},
            {"id": 3, "name": "PulmonaryTuberculosis"},
        ],
    }
    for name in ("TBX11K_train", "TBX11K_trainval", "all_trainval"):
        text(home / "annotations" / "json" / f"{name}.json", json.dumps(coco))
    return home


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def nih(root: Path) -> Path:
    home = root / "ChestX-ray14"
    lines, train, test = [NIH_HEADER], [], []
    for patient in range(1, 41):
        for follow in range(2):
            name = f"{patient:08d}_{follow:03d}.png"
            film(home / f"images_{1 + patient % 2:03d}" / "images" / name, (128, 128))
            found = ("No Finding", "Cardiomegaly|Emphysema")[patient % 3 == 0]
            lines.append(
                f"{name},{found},{follow},{patient},{'058Y' if patient > 1 else '414'},M,PA,2682,2749,0.143,0.143,"
            )
            (test if patient > 30 else train).append(name)
    lines.append("00009999_000.png,Hernia,0,9999,81,F,AP,2500,2048,0.171,0.171,")
    text(home / "Data_Entry_2017.csv", *lines)
    text(home / "train_val_list.txt", *train)
    text(home / "test_list.txt", *test)
    text(
        home / "BBox_List_2017.csv",
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "00000033_000.png,Infiltrate,256,512,128.5,64,,,",
    )
    return home


def chexpert(root: Path) -> Path:
    home = root / "CheXpert-v1.0-small"
    header = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(OBSERVATIONS)}"
    rows = {
        "train": [
            ("patient00001/study1/view1_frontal.jpg", "Female,68,Frontal,AP", "1.0,,,,,,,,,0.0,,,,1.0"),
            ("patient00002/study1/view1_frontal.jpg", "Male,87,Frontal,PA", ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,"),
            ("patient00002/study1/view2_lateral.jpg", "Male,87,Lateral,", ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,"),
            ("patient00003/study1/view1_frontal.jpg", "Male,41,Frontal,AP", ",,,,,,,,,,,,,1.0"),
        ],
        "valid": [
            ("patient64541/study1/view1_frontal.jpg", "Male,73,Frontal,AP", ",".join(["0.0"] * 2 + ["1.0"] * 12))
        ],
    }
    for part, films in rows.items():
        text(home / f"{part}.csv", header, *(f"CheXpert-v1.0-small/{part}/{path},{a},{b}" for path, a, b in films))
        for path, _, _ in films:
            film(home / part / path)
    return home


def kermany(root: Path) -> Path:
    home = root / "chest_xray"
    for number in range(20):
        film(home / "train" / "NORMAL" / f"IM-{115 + number:04d}-0001.jpeg")
        film(home / "train" / "NORMAL" / f"IM-{115 + number:04d}-0001-0002.jpeg")
        film(home / "train" / "NORMAL" / f"NORMAL2-IM-{383 + number:04d}-0001.jpeg")
        film(home / "train" / "PNEUMONIA" / f"person{number}_bacteria_{number}.jpeg")
        film(home / "train" / "PNEUMONIA" / f"person{number}_virus_{100 + number}.jpeg")
    film(home / "val" / "PNEUMONIA" / "person1_bacteria_4872.jpeg")
    film(home / "val" / "NORMAL" / "NORMAL2-IM-1427-0001.jpeg")
    film(home / "test" / "PNEUMONIA" / "person1_virus_6.jpeg")
    film(home / "test" / "NORMAL" / "IM-0001-0001.jpeg")
    return home


def tbdb(root: Path) -> Path:
    home = root / "TB_Chest_Radiography_Database"
    film(home / "Normal" / "Normal-1.png")
    film(home / "Tuberculosis" / "Tuberculosis-1.png")
    return home


def covidradiography(root: Path) -> Path:
    home = root / "COVID-19_Radiography_Dataset"
    for own in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        film(home / own / "images" / f"{own}-1.png", (299, 299))
        lung(home / own / "masks" / f"{own}-1.png", slice(50, 200), (256, 256))
    return home


def covidchestxray(root: Path) -> Path:
    home = root / "covid-chestxray-dataset"
    rows = [
        ("2", "M", "65", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "images", "a.jpg", "CC BY 4.0"),
        ("2", "M", "65", "Pneumonia/Viral/COVID-19", "L", "X-ray", "images", "b.jpg", ""),
        ("3", "F", "", "Tuberculosis", "AP Supine", "X-ray", "images", "c.png", ""),
        ("4", "", "", "No Finding", "AP", "X-ray", "images", "d.jpg", ""),
        ("5", "", "", "todo", "PA", "X-ray", "images", "e.jpg", ""),
        ("6", "", "", "Pneumonia", "Axial", "CT", "volumes", "f.nii.gz", ""),
    ]
    text(
        home / "metadata.csv",
        "patientid,sex,age,finding,view,modality,folder,filename,license",
        *(",".join(row) for row in rows),
    )
    for row in rows[:5]:
        film(home / row[6] / row[7])
    return home


def rsna(root: Path) -> Path:
    home = root / "rsna-pneumonia-detection-challenge"
    text(
        home / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        "aaa,,,,,0",
        "bbb,264.0,152.0,213.0,379.0,1",
        "bbb,562.0,152.0,256.0,453.0,1",
        "ccc,,,,,0",
    )
    text(
        home / "stage_2_detailed_class_info.csv",
        "patientId,class",
        "aaa,Normal",
        "bbb,Lung Opacity",
        "bbb,Lung Opacity",
        "ccc,No Lung Opacity / Not Normal",
    )
    for name in ("aaa", "bbb", "ccc"):
        film(home / "stage_2_train_images" / f"{name}.dcm")
    return home


def vindr(root: Path) -> Path:
    home = root / "1.0.0"
    labels = "Cardiomegaly,Tuberculosis,No finding"
    votes = {"a": ("0,0,1", "0,0,1", "1,0,0"), "b": ("1,0,0", "1,1,0", "0,1,0"), "c": ("1,0,0", "0,1,0", "0,0,1")}
    text(
        home / "annotations" / "image_labels_train.csv",
        f"image_id,rad_id,{labels}",
        *(f"{image},R{reader},{vote}" for image, three in votes.items() for reader, vote in enumerate(three)),
    )
    text(home / "annotations" / "image_labels_test.csv", f"image_id,{labels}", "t,1,0,0")
    text(
        home / "annotations" / "annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
        "a,R0,No finding,,,,",
        "b,R0,Cardiomegaly,10,10,30,30",
        "b,R1,Cardiomegaly,12,10,32,30",
        "b,R1,Tuberculosis,1,1,5,5",
        "c,R0,Cardiomegaly,1,1,9,9",
    )
    text(
        home / "annotations" / "annotations_test.csv",
        "image_id,class_name,x_min,y_min,x_max,y_max",
        "t,Cardiomegaly,5,6,15,18",
    )
    for name in ("train/a", "train/b", "train/c", "test/t"):
        film(home / f"{name}.dicom")
    return home


TREES = {
    make.__name__: make
    for make in (
        *(montgomery, shenzhen, jsrt, tbx11k, nih, chexpert),
        *(kermany, tbdb, covidradiography, covidchestxray, rsna, vindr),
    )
}
