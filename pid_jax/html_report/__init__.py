"""An evaluation as one HTML file, which needs nothing else: no network, no script."""

from pid_jax.html_report.page import page

__all__ = ["page"]
