"""Hardware in the loop without hardware: controllers on pseudo-terminals, a camera that sees the truth, scenarios.

Nothing here is imported by `edge_scanner`, and no emulator imports a driver: both are written from the protocol.
"""
