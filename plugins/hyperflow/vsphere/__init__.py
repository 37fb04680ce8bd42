"""The source side: the only package that imports pyVmomi. It knows no Airflow.

``session`` logs in, ``inventory`` finds and reads, ``concerns`` judges, ``snapshot`` and ``lease`` create
the two things that a migration makes at a vCenter and take them away again. ``facts`` and ``concerns`` are
pure and need no pyVmomi.
"""
