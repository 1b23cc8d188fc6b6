"""The commands, one file for each group: parse, resolve, hand over. Nothing is computed here."""
