"""The gate: long runs that must hold before a release. See gate/README.md."""
