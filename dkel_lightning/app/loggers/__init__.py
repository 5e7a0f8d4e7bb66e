"""Where metrics go: metrics.csv, and trackers beside it."""
