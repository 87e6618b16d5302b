"""What the records say: comparisons, tables, pictures."""
