"""Bytes in, property updates out: verification, parsing, mapping."""
