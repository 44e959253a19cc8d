"""Engines: pure adapters (request → upstream bytes, upstream bytes → events) and the child process that hosts llama.cpp."""
