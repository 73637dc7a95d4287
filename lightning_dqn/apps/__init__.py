"""What is done with runs that are over, and with many of them: statistics, comparison, search, export."""
