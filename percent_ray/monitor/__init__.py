"""Metrics, spans and MLflow."""
