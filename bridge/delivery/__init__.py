"""From due records to settled values: batches, limits, answers, and calls that went wrong."""
