"""What an audit finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a file.

    Parameters
    ----------
    severity : str
        `error`: a required field is missing or wrong, or personal data is there; `warning`: a field that users miss,
        or something to look at.
    code : str
        `missing.*`, `wrong.*`, `levels.*` or `personal.*`.
    where : str
        File, relative to what was audited, and the place in it.
    message : str
        One sentence; never repeats the personal data itself.
    """

    severity: Severity
    code: str
    where: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return plain JSON types."""
        return asdict(self)
