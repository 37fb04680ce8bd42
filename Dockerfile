# The image of docker-compose.yaml: the official Airflow with what Hyperflow needs, at locked versions.
FROM apache/airflow:3.3.2-python3.12
COPY requirements-production.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --requirement /tmp/requirements.txt
# A new volume takes over owner and mode of the folder that it covers; group 0 is every AIRFLOW_UID's.
RUN mkdir --mode=2775 /opt/airflow/records
