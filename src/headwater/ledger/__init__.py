"""The record of what was used and what it cost: one writer, append-only rows, readers beside it."""
