"""The report: one self-contained HTML page with inline SVG and a trajectory viewer, and its JSON twin."""
