"""What to scan: a region, and the plan of targets that covers it.

The plan is a frozen value that can be iterated, written to JSON and read back. Targets lie on the camera's pixel
lattice, so a perfect stage needs no resampling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edge_scanner.errors import PlanError
from edge_scanner.geometry import Limits, MosaicFrame, Position, whole_px

MAX_TARGETS = 1_000_000


@dataclass(frozen=True, slots=True)
class ScanRegion:
    """A rectangle on the stage in millimetres; (x_mm, y_mm) is its top-left corner."""

    x_mm: float
    y_mm: float
    width_mm: float
    height_mm: float

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise PlanError(f"{f.name} is {value!r}, not a finite number.", "Give millimetres, 12.5 for example.")
        if self.width_mm <= 0 or self.height_mm <= 0:
            raise PlanError(
                f"The region is {self.width_mm:g} x {self.height_mm:g} mm: there is nothing to scan.",
                "Give a width and a height above zero.",
            )


@dataclass(frozen=True, slots=True)
class Target:
    """One field of view to visit; (x_um, y_um) is its centre on the stage."""

    index: int
    row: int
    col: int
    x_um: float
    y_um: float


@dataclass(frozen=True, slots=True)
class ScanPlan:
    """A serpentine of overlapping fields of view that covers a region.

    Parameters
    ----------
    region : ScanRegion
    tile_height_px, tile_width_px : int
        Camera frame.
    pixel_size_um : float
    overlap_px : int
        Pixels that neighbours share, the same along both axes.
    """

    region: ScanRegion
    tile_height_px: int
    tile_width_px: int
    pixel_size_um: float
    overlap_px: int

    def __post_init__(self) -> None:
        if not (self.pixel_size_um > 0 and math.isfinite(self.pixel_size_um)):
            raise PlanError(f"The pixel size is {self.pixel_size_um!r} um.", "Give a positive number.")
        if min(self.tile_height_px, self.tile_width_px) < 16:
            raise PlanError(f"A tile of {self.tile_width_px} x {self.tile_height_px} px is too small to scan with.")
        if not 0 <= self.overlap_px <= min(self.tile_height_px, self.tile_width_px) * 3 // 4:
            raise PlanError(
                f"An overlap of {self.overlap_px} px does not fit tiles of {self.tile_width_px} x "
                f"{self.tile_height_px} px.",
                "Use between 0 and three quarters of the smaller side.",
            )
        if self.rows * self.cols > MAX_TARGETS:
            raise PlanError(
                f"The region needs {self.rows * self.cols} tiles, more than {MAX_TARGETS}.", "Scan a smaller region."
            )

    @property
    def height_px(self) -> int:
        """Rows of the mosaic."""
        return whole_px(self.region.height_mm * 1000, self.pixel_size_um)

    @property
    def width_px(self) -> int:
        """Columns of the mosaic."""
        return whole_px(self.region.width_mm * 1000, self.pixel_size_um)

    @property
    def rows(self) -> int:
        """Scan lines."""
        return _steps(self.height_px, self.tile_height_px, self.overlap_px)

    @property
    def cols(self) -> int:
        """Targets of a scan line."""
        return _steps(self.width_px, self.tile_width_px, self.overlap_px)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __iter__(self) -> Iterator[Target]:
        for row in range(self.rows):
            cols = range(self.cols) if row % 2 == 0 else range(self.cols - 1, -1, -1)
            for col in cols:
                yield self._target(row, col)

    def index_at(self, row: int, col: int) -> int:
        """Return the index, in scan order, of the target at a place of the grid."""
        return row * self.cols + (col if row % 2 == 0 else self.cols - 1 - col)

    def target(self, index: int) -> Target:
        """Return the target of that index."""
        row, col = divmod(index, self.cols)
        return self._target(row, col if row % 2 == 0 else self.cols - 1 - col)

    def corner_px(self, row: int, col: int) -> tuple[int, int]:
        """Return (y, x) in nominal mosaic pixels of the top-left pixel of the tile at (row, col).

        What the grid covers beyond the region is shared between both sides, so corners may be negative.
        """
        step_y, step_x = self.tile_height_px - self.overlap_px, self.tile_width_px - self.overlap_px
        spare_y = (self.rows - 1) * step_y + self.tile_height_px - self.height_px
        spare_x = (self.cols - 1) * step_x + self.tile_width_px - self.width_px
        return row * step_y - spare_y // 2, col * step_x - spare_x // 2

    def _target(self, row: int, col: int) -> Target:
        y, x = self.corner_px(row, col)
        return Target(
            self.index_at(row, col),
            row,
            col,
            self.region.x_mm * 1000 + (x + self.tile_width_px / 2) * self.pixel_size_um,
            self.region.y_mm * 1000 + (y + self.tile_height_px / 2) * self.pixel_size_um,
        )

    def frame(self) -> MosaicFrame:
        """Return the mosaic's frame for a stage whose axes are the camera's."""
        return MosaicFrame.aligned(
            self.region.x_mm * 1000, self.region.y_mm * 1000, self.height_px, self.width_px, self.pixel_size_um
        )

    def check_limits(self, limits: Limits, z_um: float) -> None:
        """Refuse a plan any of whose targets the stage may not reach.

        Raises
        ------
        PlanError
            With code `limits.exceeded`, naming the axis and the allowed range.
        """
        for row, col in ((0, 0), (self.rows - 1, self.cols - 1)):
            t = self._target(row, col)
            if not limits.contains(Position(t.x_um, t.y_um, z_um)):
                raise PlanError(
                    f"The region reaches ({t.x_um / 1000:.3f}, {t.y_um / 1000:.3f}) mm; the stage allows x "
                    f"{limits.x_min_um / 1000:g} to {limits.x_max_um / 1000:g} and y {limits.y_min_um / 1000:g} to "
                    f"{limits.y_max_um / 1000:g} mm.",
                    "Move or shrink the region.",
                    code="limits.exceeded",
                )

    def to_json(self) -> str:
        """Return the plan file's text."""
        return json.dumps({"version": 1, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ScanPlan:
        """Read a plan file's text.

        Raises
        ------
        PlanError
            When it is not a plan of version 1.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise PlanError(f"The plan is not JSON ({error}).", "The README shows one.") from error
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: Any) -> ScanPlan:
        """Read a plan from parsed JSON; see `from_json`."""
        if not isinstance(raw, dict) or raw.get("version") != 1:
            raise PlanError('The plan lacks "version": 1.', "Use a plan file of this version.")
        known = {f.name for f in fields(cls)}
        if unknown := set(raw) - known - {"version"}:
            raise PlanError(f"The plan has an unknown field {sorted(unknown)[0]!r}.", f"Known: {sorted(known)}.")
        if missing := known - set(raw):
            raise PlanError(f"The plan lacks {sorted(missing)[0]!r}.")
        region = raw["region"]
        if not isinstance(region, dict) or set(region) != {f.name for f in fields(ScanRegion)}:
            raise PlanError("The plan's region needs exactly x_mm, y_mm, width_mm and height_mm.")
        whole = ("tile_height_px", "tile_width_px", "overlap_px")
        if not all(isinstance(raw[k], int) and not isinstance(raw[k], bool) for k in whole):
            raise PlanError("The plan's tile size and overlap must be whole numbers of pixels.")
        if not isinstance(raw["pixel_size_um"], int | float):
            raise PlanError("The plan's pixel_size_um must be a number.")
        height, width, overlap = (raw[k] for k in whole)
        return cls(ScanRegion(**region), height, width, float(raw["pixel_size_um"]), overlap)

    @classmethod
    def load(cls, path: Path) -> ScanPlan:
        """Read a plan file."""
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"The plan {path} cannot be read ({error}).") from error


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What a client asks to scan: exactly one of a region, a whole plan, or an unfinished scan to go on with."""

    region: ScanRegion | None = None
    plan: ScanPlan | None = None
    resume: str | None = None

    def __post_init__(self) -> None:
        if sum(part is not None for part in (self.region, self.plan, self.resume)) != 1:
            raise PlanError("A scan needs exactly one of a region, a plan, or the scan to resume.")


def _steps(length_px: int, tile_px: int, overlap_px: int) -> int:
    return 1 + max(0, math.ceil((length_px - tile_px) / (tile_px - overlap_px)))


def auto_overlap_px(
    tile_height_px: int,
    tile_width_px: int,
    pixel_size_um: float,
    *,
    field_curvature_um: float,
    depth_of_field_um: float,
    stage_error_um: float,
    register_px: int = 96,
) -> int:
    """Return the overlap that the optics and the stage ask for.

    Three needs add up: a strip wide enough to register on, three sigma of the stage's error of both tiles, and the
    rim of the field that field curvature takes out of focus. The sag grows with the square of the field radius r:
    `sag(r) = field_curvature * (r / r_corner)^2`; focused half-way, the image is sharp where the sag is within one
    depth of field, so the rim beyond `r = r_corner * sqrt(depth_of_field / field_curvature)` along each side is best
    taken from the neighbour.

    Parameters
    ----------
    tile_height_px, tile_width_px : int
    pixel_size_um : float
    field_curvature_um : float
        Measured sag between centre and corner of the field.
    depth_of_field_um : float
    stage_error_um : float
        Sigma of the stage's repeatability.
    register_px : int
        Strip that registration wants, pixels.

    Returns
    -------
    int
        Pixels, at most half of the smaller side.
    """
    side = min(tile_height_px, tile_width_px)
    rim = 0.0
    if field_curvature_um > depth_of_field_um:
        corner = math.hypot(tile_height_px, tile_width_px) / 2
        sharp = corner * math.sqrt(depth_of_field_um / field_curvature_um)
        rim = max(0.0, side / 2 - sharp)
    stage = 3 * math.sqrt(2) * stage_error_um / pixel_size_um
    return min(side // 2, math.ceil(min(register_px, side / 8) + stage + 2 * rim))
