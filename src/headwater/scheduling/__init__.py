"""Whose turn it is: pure decisions about order and sharing. No clock, no event loop, no I/O; the gateway acts on them."""
