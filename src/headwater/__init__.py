"""Headwater turns large models into a service: one package from engine to bill."""

__version__ = "0.1.0"
