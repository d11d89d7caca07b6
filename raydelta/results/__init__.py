"""What finished trainings are worth: evaluation, the table, the curve over labels, pictures and the report page.

In: stage and sweep directories. Out: ``table.json``, pictures, ``report.html``. Nothing is trained here.
"""
