"""The durable journal: the state each record should have, and the events that asked for it."""
