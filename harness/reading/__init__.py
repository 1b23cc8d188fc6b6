"""From records to a reader: what may be compared, tables, figures, the leaderboard. No torch."""
