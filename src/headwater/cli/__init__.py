"""The command line: `headwater NOUN VERB`, one file for each noun; tables for people, `--json` for scripts."""
