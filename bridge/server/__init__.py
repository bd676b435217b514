"""The running service: gunicorn's processes, the ports, and the one place that wires the rooms together."""
