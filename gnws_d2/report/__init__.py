"""The report of an evaluation: plots, images, and one HTML page with all of them.

:func:`~gnws_d2.report.write.write_report` writes one, :func:`~gnws_d2.report.run.report_run` those
of an output folder. Nothing is imported here, because the engine needs the names of the folders
alone.
"""
