# The image of docker-compose.yaml: the official Airflow with what Hyperflow needs, at the locked versions.
FROM apache/airflow:3.3.2-python3.12
COPY requirements.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --constraint /tmp/requirements.txt \
        apache-airflow apache-airflow-providers-ssh apache-airflow-providers-standard \
        apache-airflow-providers-celery apache-airflow-providers-fab apache-airflow-providers-postgres \
        pyvmomi jsonschema pydantic PyYAML rich
