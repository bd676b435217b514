"""From due records to settled values: batches, limits, answers, isolation."""
