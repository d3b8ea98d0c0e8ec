"""The mosaic's frame on a stage that is turned, mirrored or wrongly scaled against the camera."""

from __future__ import annotations

from edge_scanner.calibrate.axes import StageAxes
from edge_scanner.errors import ScannerError
from edge_scanner.geometry import MosaicFrame, whole_px
from edge_scanner.plan import ScanPlan

MOST_SCALE_ERROR = 0.1


def frame_of(plan: ScanPlan, axes: StageAxes | None) -> MosaicFrame:
    """Return the frame of a plan in the camera's axes: the smallest canvas that holds the whole region.

    Axes that cannot be told from the nominal ones, and None, give `plan.frame()`.

    Raises
    ------
    ScannerError
        When the pixel size is far from the plan's, or the camera turned so far that its tiles would leave gaps.
    """
    axes = None if axes is None else axes.exact(plan.pixel_size_um)
    if axes is None or axes == StageAxes(1 / plan.pixel_size_um, 0.0, 0.0, 1 / plan.pixel_size_um):
        return plan.frame()
    _check_scale(plan, axes)
    _check_gaps(plan, axes)
    x, y = plan.region.x_mm * 1000, plan.region.y_mm * 1000
    width, height = plan.region.width_mm * 1000, plan.region.height_mm * 1000
    corners = [axes.to_px(dx, dy) for dx in (0.0, width) for dy in (0.0, height)]
    (y0, y1), (x0, x1) = ((min(values), max(values)) for values in zip(*corners, strict=True))
    off_x, off_y = axes.to_um(y0, x0)
    return MosaicFrame(
        x + off_x, y + off_y, whole_px(y1 - y0, 1.0), whole_px(x1 - x0, 1.0), plan.pixel_size_um,
        axes.xx, axes.xy, axes.yx, axes.yy,
    )  # fmt: skip


def _check_scale(plan: ScanPlan, axes: StageAxes) -> None:
    """Refuse a pixel size that no error of the stage's unit explains: another objective is mounted."""
    if not abs(axes.pixel_size_um / plan.pixel_size_um - 1) <= MOST_SCALE_ERROR:
        raise ScannerError(
            f"A pixel is {axes.pixel_size_um:.4g} um wide by the stage's unit, not {plan.pixel_size_um:.4g} um.",
            'Mount the configured objective, correct optics.pixel_size_um, or set stage.matrix to "nominal".',
        )


def _check_gaps(plan: ScanPlan, axes: StageAxes) -> None:
    """Refuse a turn for which the overlap is too small.

    Neighbours in a row lie `across` apart, neighbours in a column `down`. A row is a band without gaps while `across`
    is mostly sideways and shorter than a tile; two such bands meet everywhere when they overlap by more than the step
    between neighbours. The same holds for columns.
    """
    pixel_um, (height, width) = plan.pixel_size_um, (plan.tile_height_px, plan.tile_width_px)
    across = axes.to_px((width - plan.overlap_px) * pixel_um, 0.0)
    down = axes.to_px(0.0, (height - plan.overlap_px) * pixel_um)
    overlap = height - abs(down[0]), width - abs(across[1])
    slope = abs(across[0]), abs(down[1])
    apart = slope[0] > abs(down[0]) or slope[1] > abs(across[1])
    if apart or min(overlap) < 0 or (slope[0] > overlap[0] and slope[1] > overlap[1]):
        raise ScannerError(
            f"The camera is turned {axes.rotation_deg:.1f} degrees against the stage and one of its pixels is "
            f"{axes.pixel_size_um:.4g} um by the stage's unit: tiles would leave gaps.",
            "Turn the camera, correct optics.pixel_size_um, or raise scan.overlap.",
        )
