"""A serial port with one owner: exclusive, bounded in time, one kind of error, and a halt that waits for nobody."""

from __future__ import annotations

import contextlib
import termios
import threading
from pathlib import Path

import serial

from edge_scanner.devices.clock import Clock
from edge_scanner.errors import DeviceError, EmergencyStopError

WRITE_TIMEOUT_S = 1.0
"""Also bounds how long this process may be kept from the processor in mid-write, which pyserial takes for the same."""
BY_ID = Path("/dev/serial/by-id")

_SLICE_S = 0.02
_LOST = (serial.SerialException, OSError, termios.error, TypeError, ValueError)
"""What pyserial raises on a line that is unplugged or closed; the families have no common root."""


class SerialLine:
    """Bytes to and from one device.

    One thread sends and receives; `halt` and `urgent` may be called from any thread. A packet is never cut: an urgent
    packet waits at most for the one that is being written. While halted nothing else is sent or received, so no
    packet follows the halt.

    Memory bound: what has been received and not yet read.

    Parameters
    ----------
    port : str
        A device path or URL, or a part of a name in /dev/serial/by-id.
    baud : int
    clock : Clock
    """

    def __init__(self, port: str, baud: int, clock: Clock) -> None:
        self._port = port
        self._baud = baud
        self._clock = clock
        self._serial: serial.Serial | None = None
        self._failed = False
        self._writing = threading.Lock()
        self._halted = threading.Event()
        self._received = bytearray()

    @property
    def is_open(self) -> bool:
        """Whether the port is open and has not failed."""
        return self._serial is not None and not self._failed

    @property
    def halted(self) -> bool:
        """Whether `halt` was called since the last `release`."""
        return self._halted.is_set()

    def open(self) -> None:
        """Open the port for this process alone.

        Raises
        ------
        DeviceError
            When it is not there, in use, or cannot be set up.
        """
        self.close()
        path = resolve(self._port)
        try:
            self._serial = serial.serial_for_url(
                path, self._baud, timeout=_SLICE_S, write_timeout=WRITE_TIMEOUT_S, exclusive=True
            )
        except _LOST as error:
            raise DeviceError(
                f"The port {path} cannot be opened ({error}).", "Check cable, power, stage.port and who else uses it."
            ) from error
        self._received.clear()
        self._failed = False

    def close(self) -> None:
        """Close the port; safe to call twice."""
        with self._writing:
            port, self._serial = self._serial, None
        if port is not None:
            with contextlib.suppress(*_LOST):  # the device may be gone already
                port.close()

    def halt(self) -> None:
        """Refuse and end all traffic but `urgent`, until `release`; from any thread."""
        self._halted.set()

    def release(self) -> None:
        """Allow traffic again."""
        self._halted.clear()

    def urgent(self, packet: bytes) -> None:
        """Send a packet, halted or not; from any thread.

        Raises
        ------
        DeviceError
            When the line is closed, lost, or takes no bytes.
        """
        with self._writing:
            self._write(packet)

    def send(self, packet: bytes) -> None:
        """Send a packet whole.

        Raises
        ------
        DeviceError
            When the line is closed, lost, or takes no bytes.
        EmergencyStopError
            While halted.
        """
        with self._writing:
            self._check_halt()
            self._write(packet)

    def receive(self, timeout_s: float) -> bytes:
        """Return what has come, waiting for the first byte; empty when none came in time. Raises as `send`."""
        if not self._received:
            self._fill(timeout_s)
        taken = bytes(self._received)
        self._received.clear()
        return taken

    def read_line(self, timeout_s: float, end: bytes = b"\n") -> str | None:
        """Return the next line, stripped; None when no whole one came in time. Raises as `send`."""
        deadline_s = self._clock.now_s() + timeout_s
        while (at := self._received.find(end)) < 0:
            had = len(self._received)
            self._fill(max(0.0, deadline_s - self._clock.now_s()))
            if len(self._received) == had and self._clock.now_s() >= deadline_s:
                return None
        taken = bytes(self._received[:at])
        del self._received[: at + len(end)]
        return taken.decode("ascii", "replace").strip()

    def clear(self) -> None:
        """Throw away what has come. Raises as `send`."""
        self._received.clear()
        try:
            self._opened().reset_input_buffer()
        except _LOST as error:
            raise self._lost(error) from error

    def drain(self, quiet_s: float) -> None:
        """Throw away what comes until nothing came for `quiet_s`, or for 20 times that long. Raises as `send`."""
        deadline_s = self._clock.now_s() + 20 * quiet_s
        while self.receive(quiet_s) and self._clock.now_s() < deadline_s:
            pass

    def sleep(self, seconds: float) -> None:
        """Let time pass; `halt` ends it."""
        self._halted.wait(max(0.0, seconds))

    def _fill(self, timeout_s: float) -> None:
        """Wait for at least one byte and take all there are."""
        deadline_s = self._clock.now_s() + timeout_s
        while True:
            self._check_halt()
            port = self._opened()
            try:
                port.timeout = max(0.0, min(_SLICE_S, deadline_s - self._clock.now_s()))
                came = port.read(max(1, port.in_waiting))
            except _LOST as error:
                raise self._lost(error) from error
            self._received += came
            if came or self._clock.now_s() >= deadline_s:
                return

    def _write(self, packet: bytes) -> None:
        try:
            self._opened().write(packet)
        except _LOST as error:
            raise self._lost(error) from error

    def _opened(self) -> serial.Serial:
        port = self._serial
        if port is None:
            raise DeviceError("The line to the controller is closed.", "Check its cable and power, then home.")
        return port

    def _check_halt(self) -> None:
        if self._halted.is_set():
            raise EmergencyStopError("The stage was stopped.", "Reset and home it.")

    def _lost(self, error: Exception) -> DeviceError:
        self._failed = True
        return DeviceError(
            f"The line to {self._port} is lost ({error}).", "Check cable and power, then reset and home."
        )


def resolve(port: str) -> str:
    """Return the path of a port that is given by path, URL, or a part of its name in /dev/serial/by-id.

    Raises
    ------
    DeviceError
        When no name, or more than one, fits.
    """
    if "/" in port:
        return port
    names = sorted(path.name for path in BY_ID.glob("*"))
    fitting = [name for name in names if port and port in name]
    if len(fitting) != 1:
        there = ", ".join(names) or "none"
        raise DeviceError(f"stage.port {port!r} fits {len(fitting)} serial ports.", f"There are: {there}.")
    return str(BY_ID / fitting[0])
