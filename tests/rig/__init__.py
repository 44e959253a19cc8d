"""The test rig: a fake engine that is a real program, a fault proxy, and clients that leave in every way.

Everything here runs as it would in the world: real sockets, real processes, bytes on loopback. The map of it,
every knob and the shape of the truth log are in `docs/explanation/test-rig.md`.
"""
