"""A folder with one folder per class, as people lay them out, becomes the rows of a manifest.

Folders of splits may lie above or below those of the classes, in any case; so may folders such as `images`. What lies
in a folder of masks, or is named as the mask of a film beside it, is a mask and no film.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from cxr_pipeline.data.names import brief
from cxr_pipeline.data.radiograph import looks_like_image
from cxr_pipeline.data.walk import files_below

# What others call the splits.
SPLIT_NAMES = {
    **{name: name for name in ("train", "val", "test", "external")},
    **dict.fromkeys(("training", "trn"), "train"),
    **dict.fromkeys(("valid", "validation", "dev"), "val"),
    **dict.fromkeys(("testing", "tst"), "test"),
}
# A word for a split as the name of a folder: `training_set`, `Test-Data`, `val2017`, `images_train`, `01 train`.
_SPLIT = re.compile(
    r"(?:\d+[ _.-]+)?(?:(?:images?|imgs?|films?|data|dataset|set)[ _.-]+)?"
    rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})"
    r"(?:[ _.-]*(?:data ?sets?|sets?|data|images?|imgs?|films?|xrays?|splits?|folders?))*(?:[ _.-]*\d+)?"
)
_PLAIN = frozenset(
    {"image", "images", "img", "imgs", "film", "films", "png", "jpg", "jpeg", "dicom", "dcm", "xray", "xrays"}
)
# A folder of masks: `lung_masks`, `Masks_png`, `masks (lungs)`, `maskLungs`, `segmentation`, `ground truth`, `gt`.
_MASKS = re.compile(
    r".*masks?|(?:.*[ _.-])?masks?[ _.-].*|masks?(?:lungs?|left|right|png)|(?:.*[ _-])?segmentations?|segs?|gt|"
    r"ground[ _-]?truths?|labels?|annotations?",
    re.IGNORECASE,
)
# A mask's own name: `mask_a`, `a_mask`, `a.mask`, `12mask`, `a_lungmask`, `a_mask_lungs`, `a_seg`, `a_gt`, `a_lung`.
_IS_MASK = re.compile(
    r"mask[ _-](?P<after>.+)|(?P<before>.+?)(?:[ _.-]|(?<=\d)(?=mask))(?:lungs?[ _-]?)?"
    r"(?:masks?|seg|segmentation|label|gt|lungs?)(?:[ _-]lungs?)?",
    re.IGNORECASE,
)
_OTHER_ORGANS = re.compile(r"heart|clavicle|trachea|spine|lesion|nodule", re.IGNORECASE)
# Words by which a folder inside another is taken for one of classes, and the outer one for a wrapping.
CLASS_WORDS = frozenset(
    (
        *("tb", "ntb", "norm", "normal", "healthy", "health", "sick", "tuberculosis", "pneumonia", "covid", "covid19"),
        *("abnormal", "positive", "negative", "control", "nofinding", "0", "1", "disease"),
    )
)


def split_of(name: str) -> str | None:
    """The split that the name of a folder, or a word in a table, means; None where it means none.

    Case, numbers and words such as `_set`, `-data` or `_images` behind the split's do not count.
    """
    match = _SPLIT.fullmatch(name.strip().casefold())
    return SPLIT_NAMES[match[1]] if match else None


def rows_of(root: Path, classes: Sequence[str] | None = None, unclear: list[str] | None = None) -> list[dict[str, str]]:
    """Rows with image, label, split and mask (paths relative to `root`), in the order of their paths.

    Args:
        root: the folder.
        classes: labels that are expected: folders that differ in case alone get their spelling.
        unclear: takes the masks (relative to `root`) that may be of several films, which none of them gets.
    """
    home = _unwrapped(root)
    films: list[tuple[Path, str, str, str]] = []
    masks: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    beside: dict[Path, set[str]] = defaultdict(set)
    files = [path for path in files_below(home) if looks_like_image(path)]
    for path in files:
        beside[path.parent].add(path.stem)
    for path in files:
        parts = path.relative_to(home).parts[:-1]
        if any(_OTHER_ORGANS.search(part) for part in parts if _within_masks(parts)):
            continue
        kept = [part for part in parts if split_of(part) is None and part.casefold() not in _PLAIN]
        split = next((name for part in parts if (name := split_of(part)) is not None), "")
        if _within_masks(parts):
            label = next((part for part in kept if not _MASKS.fullmatch(part)), "")
            masks[_stem(path)].append((f"{split}/{label}".casefold(), path))
        elif _IS_MASK.fullmatch(path.stem) and _stem(path) in {name.casefold() for name in beside[path.parent]}:
            masks[_stem(path)].append((f"{split}/{kept[0] if kept else ''}".casefold(), path))
        else:
            films.append((path, kept[0] if kept else "", split, f"{split}/{kept[0] if kept else ''}".casefold()))
    spelled = {name.casefold(): name for name in reversed([*(classes or ()), *(label for _, label, _, _ in films)])}
    chosen = _chosen([(path, place) for path, _, _, place in films], masks)
    uses = Counter(mask for found in chosen.values() for mask in found)
    for found in chosen.values():
        if len(found) > 1 and not _are_two_lungs(found):
            uses.update(found)  # several masks for one film are as unclear as one mask for several films
    clear = {path: found if all(uses[mask] == 1 for mask in found) else [] for path, found in chosen.items()}
    if unclear is not None:
        unclear += sorted(mask.relative_to(root).as_posix() for mask, films_of in uses.items() if films_of > 1)
    return [
        {
            "image": path.relative_to(root).as_posix(),
            "label": spelled.get(label.casefold(), label),
            "split": split,
            "mask": "|".join(mask.relative_to(root).as_posix() for mask in clear[path]),
        }
        for path, label, split, _ in sorted(films)
    ]


def _within_masks(parts: Sequence[str]) -> bool:
    return any(map(_MASKS.fullmatch, parts))


def _stem(path: Path) -> str:
    """A film's name, by its own file or by that of its mask."""
    match = _IS_MASK.fullmatch(path.stem)
    return (match["after"] or match["before"] if match else path.stem).casefold()


def _chosen(films: Sequence[tuple[Path, str]], masks: Mapping[str, list[tuple[str, Path]]]) -> dict[Path, list[Path]]:
    """The masks that each film may have: beside it, of its own split and class, or else those of no other film's."""
    labels = {place.partition("/")[2] for _, place in films}
    chosen = {}
    for path, place in films:
        own = [mask for where, mask in masks.get(_stem(path), []) if where == place]
        chosen[path] = [mask for mask in own if mask.parent == path.parent] or own
    taken = {mask for found in chosen.values() for mask in found}
    for path, place in films:
        if not chosen[path]:
            found = masks.get(_stem(path), [])
            chosen[path] = [m for where, m in found if m not in taken and _may_belong(where, place, labels)]
    return chosen


def _may_belong(where: str, place: str, labels: Set[str]) -> bool:
    """Whether a mask from another folder may be of a film: its split and class are the film's, or are none."""
    split, _, label = where.partition("/")
    own_split, _, own_label = place.partition("/")
    return (not split or not own_split or split == own_split) and (label == own_label or label not in labels - {""})


def _are_two_lungs(masks: Sequence[Path]) -> bool:
    sides = {side for path in masks for side in ("left", "right") if side in str(path.parent).casefold()}
    return len(masks) == 2 and sides == {"left", "right"}


def unclear_masks(names: Sequence[str]) -> str:
    """A sentence on masks that no film gets, by name and folder."""
    ends = ["/".join(Path(name).parts[-3:]) for name in names[:5]]
    shown = ", ".join(brief(end, 80) for end in ends) + (", ..." if len(names) > 5 else "")
    return (
        f"{len(names)} mask(s) fit several films, or share one film with other masks, and are given to none: {shown}. "
        "Put masks into folders named as those of their films, or name them in a column `mask`"
    )


def _unwrapped(root: Path) -> Path:
    """The folder that holds those of the classes: below `root` where that holds one folder alone, and no film."""
    home = root
    for _ in range(4):
        entries = [path for path in sorted(home.iterdir()) if not path.name.startswith((".", "__MACOSX"))]
        folders = [path for path in entries if path.is_dir()]
        if len(folders) != 1 or any(looks_like_image(path) for path in entries if path.is_file()):
            return home
        inner = folders[0].name.casefold()
        if split_of(inner) or inner in CLASS_WORDS or inner in _PLAIN:
            return home
        names = [
            "".join(c for c in path.name.casefold() if c.isalnum()) for path in folders[0].iterdir() if path.is_dir()
        ]
        if not any(split_of(name) or name in CLASS_WORDS for name in names) and len(names) != 1:
            return home
        home = folders[0]
    return home
