"""The Artifact Manifest v1.0 and the report: models, loader, builder, verification.

Knows no Airflow and no vSphere.
"""
