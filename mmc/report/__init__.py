"""One self-contained HTML page about a build."""

from mmc.report.html import ReportJob, Story, report_html

__all__ = ["ReportJob", "Story", "report_html"]
