"""The controller's lease: one client at a time may start things."""

from __future__ import annotations

from edge_scanner.devices.clock import Clock
from edge_scanner.errors import ScannerError


class Lease:
    """Held by the first client that uses it, until released or until its holder has been silent for long enough.

    Parameters
    ----------
    clock : Clock
    silence_s : float
        How long after the holder's last message the lease ends.
    """

    def __init__(self, clock: Clock, silence_s: float) -> None:
        self._clock = clock
        self._silence_s = silence_s
        self._holder: str | None = None
        self._until_s = 0.0

    @property
    def holder(self) -> str | None:
        """Who holds the lease now."""
        if self._holder is not None and self._clock.now_s() >= self._until_s:
            self._holder = None
        return self._holder

    def heard(self, client: str) -> None:
        """Renew the lease if that client holds it."""
        if self.holder == client:
            self.take(client)

    def check(self, client: str) -> None:
        """Refuse a client while another one holds the lease.

        Raises
        ------
        ScannerError
            With code `lease.held`.
        """
        if self.holder not in (None, client):
            raise ScannerError(
                f"The scanner is controlled by {self._holder!r}.",
                f"Wait until it sends lease.release or has been silent for {self._silence_s:g} s; "
                "pause, cancel and stop need no lease.",
                code="lease.held",
            )

    def take(self, client: str) -> None:
        """Give the lease to a client, or renew it."""
        self._holder, self._until_s = client, self._clock.now_s() + self._silence_s

    def release(self, client: str) -> bool:
        """End the lease if that client holds it; tell whether it did."""
        held = self.holder == client
        if held:
            self._holder = None
        return held

    def as_json(self) -> dict[str, object]:
        """Return `holder` (None when free) and `expires_s` for the status."""
        holder = self.holder
        left = round(self._until_s - self._clock.now_s(), 3) if holder is not None else None
        return {"holder": holder, "expires_s": left}
