"""The service's page at `/`: one file that loads nothing but the service's own answers."""

from __future__ import annotations

from importlib.resources import files

from ripieno.report.templates import environment

# The report stands in a frame without an origin, so that nothing in a run's folder reaches the page or its token. Its
# scripts are inline, and a frame made from a blob obeys the page's policy too; that no text ever becomes markup or a
# script is what trusted types are for.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "frame-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Opened by its own address, the report has no origin either.
REPORT_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": (
        "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


def page() -> str:
    """Return the page, with what it has in common with the report put in."""
    source = files("ripieno.serving").joinpath("page.html").read_text(encoding="utf-8")
    return environment().from_string(source).render()
