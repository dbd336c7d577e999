"""One self-contained HTML page about a build."""

from mmc.report.html import ReportJob, report_html

__all__ = ["ReportJob", "report_html"]
