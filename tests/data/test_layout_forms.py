"""Public sets in the other forms that people have, and what is said of a folder that is another thing."""

from __future__ import annotations

import json
import shutil
import zipfile

import pytest

from cxr_pipeline.data import layouts
from cxr_pipeline.data.layouts import ExternalLayoutError, Layout
from cxr_pipeline.data.layouts import layouts as all_layouts
from cxr_pipeline.data.layouts.base import LayoutError, ManifestRow
from cxr_pipeline.data.layouts.write import import_dataset
from tests.data.layout_trees import TREES, film, lung, montgomery, nih, rsna, shenzhen, tbdb, tbx11k, text


def table_of(name, home, tmp_path, **options):
    done = import_dataset(name, home, tmp_path / "out" / "m.csv", **options)
    table = done.manifest.table
    return done, table.assign(stem=[image.rpartition("/")[2].rpartition(".")[0] for image in table["image"]]).set_index(
        "stem"
    )


@pytest.mark.parametrize(("name", "prefix"), [("shenzhen", "CHNCXR"), ("montgomery", "MCUCXR")])
@pytest.mark.parametrize("place", ["images/images", "images", "CXR_png"])
def test_the_nlms_sets_of_kaggle(tmp_path, name, prefix, place):
    home = tmp_path / "archive"
    film(home / place / f"{prefix}_0001_0.png")
    film(home / place / f"{prefix}_0331_1.png")
    text(
        home / f"{name}_metadata.csv",
        "study_id,sex,age,findings",
        f"{prefix}_0001_0.png,Male,45,normal",
        f'{prefix}_0331_1.png,Female Surgery,28,"right PTB, ',
        'with effusion"',
    )
    _, table = table_of(name, home, tmp_path)
    assert list(table["label"]) == ["NORM", "TB"]
    assert list(table["age"]) == ["45", "28"]
    assert list(table["sex"]) == ["M", "F"]
    assert table.loc[f"{prefix}_0331_1", "reading"] == "right PTB, with effusion"


def test_the_sample_of_nih(tmp_path):
    home = tmp_path / "sample"
    film(home / "images" / "00000013_005.png")
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImageWidth"
    )
    text(home / "sample_labels.csv", header, "00000013_005.png,Emphysema|Infiltration,005,13,060Y,M,AP,3056")
    done, table = table_of("nih", home, tmp_path)
    row = table.loc["00000013_005"]
    assert (row["label"], row["findings"], row["age"], row["split"]) == ("NTB", "Emphysema|Infiltration", "60", "")
    assert any("no official splits" in note for note in done.notes)


def test_nih_with_its_folders_of_films_linked(tmp_path):
    far = nih(tmp_path / "far")
    home = tmp_path / "here" / "ChestX-ray14"
    home.mkdir(parents=True)
    for path in far.iterdir():
        (home / path.name).symlink_to(path)
    (home / "images_001" / "loop").symlink_to(home)
    done, table = table_of("nih", home, tmp_path)
    assert len(table) == 80
    assert any("1 of 81 films" in note for note in done.notes)


def test_tbx11k_simplified(tmp_path):
    home = tmp_path / "tbx11k-simplified"
    for name in ("h0001", "s0001", "tb0003"):
        film(home / "images" / f"{name}.png", (512, 512))
    text(
        home / "data.csv",
        "fname,image_height,image_width,source,bbox,target,tb_type,image_type",
        "h0001.png,512,512,train,none,no_tb,none,healthy",
        "s0001.png,512,512,val,none,no_tb,none,sick_but_no_tb",
        "tb0003.png,512,512,train,\"{'xmin': 180.5, 'ymin': 120.0, 'width': 50.0, 'height': 20.0}\",tb,active_tb,tb",
        "tb0003.png,512,512,train,\"{'xmin': 80.5, 'ymin': 12.0, 'width': 5.0, 'height': 2.0}\",tb,latent_tb,tb",
        "gone.png,512,512,train,none,no_tb,none,healthy",
    )
    for given in (home, home.parent):
        done, table = table_of(
            "tbx11k",
            given,
            tmp_path,
        )
        assert list(table["label"]) == ["NORM", "NTB", "TB"]
        assert list(table["split"]) == ["train", "val", "train"]
        assert table.loc["tb0003", "findings"] == "ActiveTuberculosis|ObsoletePulmonaryTuberculosis"
        assert [tuple(box) for _, box in done.manifest.boxes_of(table.loc["tb0003", "image"])] == [
            (180.5, 120, 50, 20),
            (80.5, 12, 5, 2),
        ]
        shutil.rmtree(tmp_path / "out")


def test_tbx11k_without_its_lists(tmp_path):
    home = tbx11k(tmp_path)
    shutil.rmtree(home / "lists")
    for split, names in (
        ("train", ["health/h0001.png", "tb/tb0003.png"]),
        ("val", ["sick/s0001.png", "health/h0002.png"]),
    ):
        content = {"images": [{"id": n, "file_name": name} for n, name in enumerate(names)]}
        text(home / "annotations" / "json" / f"TBX11K_{split}.json", json.dumps(content))
        (home / "annotations" / "json" / f"all_{split}.json").unlink(missing_ok=True)
    done, table = table_of("tbx11k", home, tmp_path)
    assert dict(table["split"]) == {"h0001": "train", "h0002": "val", "s0001": "val", "tb0003": "train", "tb0005": ""}
    assert any("splits are those of annotations/json" in note for note in done.notes)


def test_vindr_of_the_challenge(tmp_path):
    home = tmp_path / "vinbigdata"
    for name in ("a", "b"):
        film(home / "train" / f"{name}.dicom")
    text(
        home / "train.csv",
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max",
        *(f"a,No finding,14,R{reader},,,," for reader in range(3)),
        "b,Cardiomegaly,3,R0,10,10,30,30",
        "b,Cardiomegaly,3,R1,12,10,32,30",
        "b,No finding,14,R2,,,,",
    )
    done, table = table_of("vindr", home, tmp_path)
    assert dict(table["label"]) == {"a": "NORM", "b": "NTB"}
    assert [tuple(box) for _, box in done.manifest.boxes_of(table.loc["b", "image"])] == [(11, 10, 20, 20)]


def test_covidradiography_of_2020_and_lower_case(tmp_path):
    home = tmp_path / "COVID-19 Radiography Database"
    film(home / "COVID-19" / "COVID-19 (1).png")
    film(home / "NORMAL" / "NORMAL (1).png")
    film(home / "Viral Pneumonia" / "Viral Pneumonia (1).png")
    done, table = table_of("covidradiography", home, tmp_path)
    assert dict(table["own_label" if "own_label" in table else "label"]) == {
        "COVID-19 (1)": "NTB",
        "NORMAL (1)": "NORM",
        "Viral Pneumonia (1)": "NTB",
    }
    assert any("no film of Lung_Opacity: is the download whole?" in note for note in done.notes)
    shutil.rmtree(home / "NORMAL")
    with pytest.raises(LayoutError, match="lacks the folder Normal/"):
        import_dataset("covidradiography", home, tmp_path / "x.csv")


def test_class_folders_in_another_case(tmp_path):
    home = TREES["kermany"](tmp_path)
    for part in ("train", "test", "val"):
        for own in ("NORMAL", "PNEUMONIA"):
            (home / part / own).rename(home / part / own.lower())
        (home / part).rename(home / part.title())
    assert set(table_of("kermany", home, tmp_path)[1]["label"]) == {"NORM", "NTB"}
    other = tbdb(tmp_path)
    (other / "Normal").rename(other / "normal")
    shutil.rmtree(tmp_path / "out")
    assert set(table_of("tbdb", other, tmp_path)[1]["label"]) == {"NORM", "TB"}
    (other / "normal" / "Normal-1.png").unlink()
    with pytest.raises(LayoutError, match="no film lies in Normal"):
        import_dataset("tbdb", other, tmp_path / "x.csv")


def test_jsrt_of_kaggle(tmp_path):
    home = tmp_path / "nodules"
    for name in ("JPCLN001", "JPCNN001"):
        film(home / "images" / "images" / f"{name}.png", (1024, 1024))
        lung(home / "masks" / "masks" / f"{name}.png", slice(5, 35))
    text(
        home / "jsrt_metadata.csv",
        "study_id,subtlety,size,age,gender,x,y,state,position,diagnosis",
        "JPCLN001.png,5.0,14.0,53,Male,1634.0,692.0,malignant,l.upper lobe,lung cancer",
        "JPCNN001.png,,,60,Female,,,non-nodule,,",
    )
    done, table = table_of("jsrt", home, tmp_path)
    assert list(table["label"]) == ["NTB", "NORM"]
    assert list(table["sex"]) == ["M", "F"]
    assert all(mask.endswith(f"masks/masks/{stem}.png") for stem, mask in table["mask"].items())
    ((_, box),) = done.manifest.boxes_of(table.loc["JPCLN001", "image"])
    assert tuple(round(value, 2) for value in box) == (797, 326, 40, 40)


@pytest.mark.parametrize("place", ["stage_2_train_images", "png", "train"])
def test_rsna_converted_to_png(tmp_path, place):
    home = rsna(tmp_path)
    shutil.rmtree(home / "stage_2_train_images")
    for name in ("aaa", "bbb", "ccc"):
        film(home / place / f"{name}.png")
    _, table = table_of("rsna", home, tmp_path)
    assert list(table.index) == ["aaa", "bbb", "ccc"]


@pytest.mark.parametrize("name", ["tbx11k", "nih", "chexpert"])
def test_endings_in_capitals_and_what_macos_leaves_change_nothing(tmp_path, name):
    plain = import_dataset(name, TREES[name](tmp_path), tmp_path / "plain" / "m.csv").manifest.table
    home = TREES[name](tmp_path / "other")
    for path in [path for path in home.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
        if path.suffix in (".png", ".jpg"):
            path.rename(path.with_suffix(path.suffix.upper()))
    table = import_dataset(name, home, tmp_path / "m.csv").manifest.table
    assert list(table["patient"]) == list(plain["patient"])
    assert list(table["split"]) == list(plain["split"])
    assert table["image"].str.endswith((".PNG", ".JPG")).all()


def test_what_is_said_of_a_wrong_folder(tmp_path):
    home = shenzhen(tmp_path / "d")
    with pytest.raises(LayoutError, match="sub-folder of it. Give its parent, .*ChinaSet_AllFiles"):
        import_dataset("shenzhen", home / "CXR_png", tmp_path / "m.csv")
    with pytest.raises(LayoutError, match="this looks like shenzhen: pipeline data import shenzhen"):
        import_dataset("montgomery", home, tmp_path / "m.csv")
    with pytest.raises(LayoutError, match="this looks like montgomery"):
        import_dataset("rsna", montgomery(tmp_path / "e"), tmp_path / "m.csv")
    packed = tmp_path / "packed"
    packed.mkdir()
    with zipfile.ZipFile(packed / "rsna-pneumonia.zip", "w") as archive:
        archive.writestr("x", "x")
    for given in (packed, packed / "rsna-pneumonia.zip"):
        with pytest.raises(LayoutError, match="unpack the archive first: rsna-pneumonia.zip"):
            import_dataset("rsna", given, tmp_path / "m.csv")
    half = nih(tmp_path / "f")
    (half / "Data_Entry_2017.csv").unlink()
    with pytest.raises(LayoutError, match="ChestX-ray14|Data_Entry"):
        import_dataset("nih", half, tmp_path / "m.csv")
    cut = tbx11k(tmp_path / "g")
    for name in ("lists", "annotations"):
        shutil.rmtree(cut / name)
    with pytest.raises(LayoutError, match=r"TBX11K lacks lists/ \(or annotations/json/\)"):
        import_dataset("tbx11k", cut, tmp_path / "m.csv")


def ours(folder, job):
    """Films of ours."""
    return [
        ManifestRow(path, patient=f"ours-{path.stem}", label="TB", source="ours")
        for path in sorted(folder.glob("*.png"))
    ]


OURS = Layout(__name__, "Ours", "films", "none", "ours", "nobody", "none")


class Point:
    name, value, group = "ours", "ours_package:OURS", layouts.GROUP

    def __init__(self, layout):
        self._layout = layout

    def load(self):
        if isinstance(self._layout, Exception):
            raise self._layout
        return self._layout


def test_another_package_adds_a_data_set(tmp_path, monkeypatch, capsys):
    import importlib.metadata

    from cxr_pipeline.cli.main import _call

    film(tmp_path / "films" / "a.png")
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [Point(OURS)] if group == layouts.GROUP else []
    )
    monkeypatch.setattr(layouts, "importer_of", lambda name, layout: ours)
    import cxr_pipeline.data.layouts.write as write

    monkeypatch.setattr(write, "importer_of", lambda name, layout: ours)
    out = tmp_path / "o" / "m.csv"
    assert _call(["data", "import", "ours", str(tmp_path / "films"), "--out", str(out)]) == 0
    assert "Cite     nobody" in capsys.readouterr().out
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point(ImportError("gone"))])
    with pytest.raises(ExternalLayoutError, match="'ours' of ours_package:OURS cannot be loaded"):
        all_layouts()
