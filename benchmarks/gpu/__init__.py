"""Everything that one GPU has to show, as rows that survive an interruption; see README.md beside this file."""
