"""Lung outline and boxes as a Grayscale Softcopy Presentation State, which viewers draw over the film itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from pydicom.dataset import Dataset

from cxr_pipeline.dicom.headers import FilmHeader
from cxr_pipeline.dicom.maker import Maker
from cxr_pipeline.dicom.segmentation import Segment
from cxr_pipeline.stages.base import Region

if TYPE_CHECKING:
    from highdicom.pr import GraphicObject, TextObject

_POINTS = 4000  # of an outline: an element of explicit length holds 8191 points
_LUNGS, _BOXES = (60, 180, 200), (255, 220, 0)  # RGB, as in the overlay


def presentation(
    segments: Sequence[Segment], regions: Sequence[Region], said: str, header: FilmHeader, maker: Maker
) -> Dataset:
    """The presentation state: outlines and boxes in the film's pixels, in a layer each, and the answer in words.

    Args:
        said: the answer, a line or two.

    Raises:
        ValueError: the film is stored in colour, which such a state is not for.
    """
    from highdicom import PresentationLUTShapeValues, PresentationLUTTransformation
    from highdicom.color import CIELabColor
    from highdicom.pr import (
        GraphicAnnotation,
        GraphicLayer,
        GrayscaleSoftcopyPresentationState,
        TextObject,
    )

    if header.colour:
        raise ValueError("the film is stored in colour")
    film = header.dataset
    lungs = GraphicLayer("LUNGS", 1, "Outline of lungs and heart", display_color=CIELabColor.from_rgb(*_LUNGS))
    boxes = GraphicLayer("REGIONS", 2, "Regions to look at", display_color=CIELabColor.from_rgb(*_BOXES))
    width, height = int(film.Columns), int(film.Rows)
    text = TextObject(
        said, "PIXEL", bounding_box=(0.0, 0.0, float(width), max(1.0, 0.06 * height)), text_justification="LEFT"
    )
    outlines = [line for one in segments for line in outlines_of(one.mask)]
    annotations = [
        GraphicAnnotation([film], lungs, graphic_objects=[_line(points) for points in outlines], text_objects=[text])
    ]
    if regions:
        labels = [_label(one, width, height, header.sides_known) for one in regions]
        corners = [_line(corners_of(one)) for one in regions]
        annotations.append(GraphicAnnotation([film], boxes, graphic_objects=corners, text_objects=labels))
    shape = PresentationLUTShapeValues.INVERSE if film.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
    made = GrayscaleSoftcopyPresentationState(
        referenced_images=[film],
        content_label="LUNGS_REGIONS",
        content_description="Lung outline and regions, research use only",
        graphic_annotations=annotations,
        graphic_layers=[lungs, boxes] if regions else [lungs],
        presentation_lut_transformation=PresentationLUTTransformation(shape),
        **maker.common(header, "pr"),
    )
    area = made.DisplayedAreaSelectionSequence[0]
    if header.spacing:
        area.PresentationPixelSpacing = [f"{value:.10g}" for value in header.spacing]
        del area.PresentationPixelAspectRatio
    elif header.aspect != 1:
        area.PresentationPixelAspectRatio = [round(1000 * header.aspect), 1000]
    made.PresentationCreationDate, made.PresentationCreationTime = header.date, header.time
    return made


def outlines_of(mask: np.ndarray) -> list[np.ndarray]:
    """The closed outlines of a mask (H, W) bool: (n, 2) float of x and y each, first point and last the same.

    They run through the middle of the outermost pixels, which is half a pixel inside the mask's edge.
    """
    found, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    out = []
    for line in found:
        simple, step = line, 0.5
        while len(simple) > _POINTS:
            simple = cv2.approxPolyDP(line, step, True)
            step *= 2
        points = simple[:, 0].astype(float) + 0.5
        if len(points) > 2:
            out.append(np.vstack([points, points[:1]]))
    return out


def corners_of(region: Region) -> np.ndarray:
    """The corners of a region, (5, 2) float of x and y, first and last the same; 0, 0 is the film's very corner."""
    x, y, w, h = (float(value) for value in region.box)
    return np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y)])


def _line(points: np.ndarray) -> GraphicObject:
    from highdicom.pr import GraphicObject

    return GraphicObject("POLYLINE", points, "PIXEL")


def _label(region: Region, width: int, height: int, sides_known: bool) -> TextObject:
    """The text of a region, above its box or, where there is no room, below it."""
    from highdicom.pr import TextObject

    line = max(1.0, 0.025 * height)
    x, y, w, h = region.box
    top = y - line if y >= 2 * line else min(y + h, height - line)
    right = min(float(width), max(x + w, x + 0.3 * width))
    side = f"{region.side} " if sides_known else ""
    said = f"{region.label} {side}{region.zone} {region.score:.2f}"
    return TextObject(
        said, "PIXEL", bounding_box=(float(x), float(top), right, float(top + line)), text_justification="LEFT"
    )
