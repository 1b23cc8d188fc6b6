"""Intervals, paired differences and tests from rows; knows no metric by name. No torch."""
