"""Base beside tuned, and runs beside each other, in figures."""
