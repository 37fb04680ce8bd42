"""Connections of Airflow as the things behind them."""
