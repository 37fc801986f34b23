"""One self-contained HTML page that says how far the answers of a run can be trusted."""
